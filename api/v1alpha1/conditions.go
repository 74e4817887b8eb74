package v1alpha1

// Condition types, of an ImageArchive as a whole and of one archive on one node. They follow kstatus: Ready is
// always there, Reconciling and Stalled only while they are True, and never both at once.
const (
	// ConditionReady is True when every image is complete under all of its names, for the generation observed:
	// on the node, or on all selected nodes.
	ConditionReady = "Ready"
	// ConditionReconciling is True while something is being done, or waits to be done or tried again.
	ConditionReconciling = "Reconciling"
	// ConditionStalled is True when trying again is of little use until the archive, the spec or the node changes.
	// An attempt is nevertheless made every ten minutes, and when AnnotationReconcileRequestedAt changes.
	ConditionStalled = "Stalled"
)

// Reasons of conditions, failures and Events. Those below ReasonImported, up to ReasonNameConflict, stall.
const (
	// ReasonPending: a node has not begun, because its agent imports another archive or has not reported yet.
	ReasonPending = "Pending"
	// ReasonImporting: an import is running.
	ReasonImporting = "Importing"
	// ReasonSuspended: spec.suspend is set, and the images are not all there.
	ReasonSuspended = "Suspended"
	// ReasonWaitingForRollout: spec.rollout has not admitted the node yet.
	ReasonWaitingForRollout = "WaitingForRollout"
	// ReasonRolloutStopped: more nodes than spec.rollout.maxFailed have failed, so that no further node begins.
	ReasonRolloutStopped = "RolloutStopped"
	// ReasonProgressDeadlineExceeded: a node that spec.rollout admitted made no progress for progressDeadline.
	ReasonProgressDeadlineExceeded = "ProgressDeadlineExceeded"
	// ReasonDrifted: images that were complete no longer are: deleted, unpinned, retargeted, or without content.
	ReasonDrifted = "Drifted"
	// ReasonImported: all images are there.
	ReasonImported = "Imported"

	// ReasonDigestMismatch: the archive, its index.json or a blob has another digest than it should have.
	ReasonDigestMismatch = "DigestMismatch"
	// ReasonArchiveInvalid: what the source gave is no image archive, or a malformed one.
	ReasonArchiveInvalid = "ArchiveInvalid"
	// ReasonTruncated: the archive ends too early.
	ReasonTruncated = "Truncated"
	// ReasonLimitExceeded: the archive exceeds a bound on members, metadata, names or expansion.
	ReasonLimitExceeded = "LimitExceeded"
	// ReasonContentIncomplete: an image needs a blob that neither the archive nor the node has.
	ReasonContentIncomplete = "ContentIncomplete"
	// ReasonNoMatchingPlatform: the archive has no image for the node's platform.
	ReasonNoMatchingPlatform = "NoMatchingPlatform"
	// ReasonInvalidName: an image has no usable name, or spec.images selects none.
	ReasonInvalidName = "InvalidName"
	// ReasonNameConflict: a name exists with another digest and is not this archive's; see spec.conflictPolicy.
	ReasonNameConflict = "NameConflict"

	// ReasonInsufficientDisk: the node lacks the space.
	ReasonInsufficientDisk = "InsufficientDisk"
	// ReasonSourceNotFound: nothing is at the source's address or path.
	ReasonSourceNotFound = "SourceNotFound"
	// ReasonSourceDenied: the source may not be read: its server or file system refuses, the Secret with the
	// credentials is absent, lacks its label or is for other hosts, or the address or path is none that an agent reads. The last stalls.
	ReasonSourceDenied = "SourceDenied"
	// ReasonSourceUnavailable: the source could not be read to its end, or changed meanwhile.
	ReasonSourceUnavailable = "SourceUnavailable"
	// ReasonRuntimeUnavailable: the node's containerd does not answer.
	ReasonRuntimeUnavailable = "RuntimeUnavailable"
	// ReasonInvalidSelector: spec.nodeSelector holds a key or value that no label can have.
	ReasonInvalidSelector = "InvalidSelector"
	// ReasonNoNodesSelected: spec.nodeSelector selects no node of the cluster.
	ReasonNoNodesSelected = "NoNodesSelected"
	// ReasonNotVisible: the images are complete in containerd, but the kubelet does not find them by their names.
	ReasonNotVisible = "NotVisible"
	// ReasonUnknown: a node reports a reason that this version does not know.
	ReasonUnknown = "Unknown"
	// ReasonImportFailed: an error that no other reason describes; the message tells more.
	ReasonImportFailed = "ImportFailed"
)

const (
	// AnnotationReconcileRequestedAt on an ImageArchive makes every selected node check the images, and try a failed import,
	// after what it is doing now instead of when the next attempt is due. Any new value counts; the current time is customary.
	AnnotationReconcileRequestedAt = "tarlift.dev/reconcile-requested-at"
	// AnnotationHosts on a Secret names the hosts that it may be sent to, separated by commas, such as
	// "archives.example.com, 10.0.0.7:8443". Without it an agent does not use the Secret.
	AnnotationHosts = "tarlift.dev/hosts"
	// LabelSource with the value "true" on a Secret allows agents to read it for a source.
	LabelSource = "tarlift.dev/source"
)
