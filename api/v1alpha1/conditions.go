package v1alpha1

// Condition types, of an ImageArchive as a whole and of one archive on one node. They follow kstatus: an ImageArchive
// always has Ready, and has Reconciling or Stalled only while it is True, never both at once.
const (
	// ConditionReady is True if every image of the observed generation is complete under all of its names: on the node,
	// or on all selected nodes.
	ConditionReady = "Ready"
	// ConditionReconciling is True while an import runs, or waits to be started or retried.
	ConditionReconciling = "Reconciling"
	// ConditionStalled is True if a retry is of little use until the archive, the spec or the node changes. The agent
	// retries every ten minutes nevertheless, and when AnnotationReconcileRequestedAt changes.
	ConditionStalled = "Stalled"
)

// Reasons of conditions, failures and Events. Those below ReasonImported, up to ReasonNameConflict, stall.
const (
	// ReasonPending: a node has not started, because its agent imports another archive or has not reported yet.
	ReasonPending = "Pending"
	// ReasonImporting: an import is running.
	ReasonImporting = "Importing"
	// ReasonSuspended: spec.suspend is set, and images are missing.
	ReasonSuspended = "Suspended"
	// ReasonWaitingForRollout: the node waits for admission by spec.rollout.
	ReasonWaitingForRollout = "WaitingForRollout"
	// ReasonRolloutStopped: more nodes than spec.rollout.maxFailed have failed, so that no further node is admitted.
	ReasonRolloutStopped = "RolloutStopped"
	// ReasonProgressDeadlineExceeded: an admitted node made no progress for spec.rollout.progressDeadline.
	ReasonProgressDeadlineExceeded = "ProgressDeadlineExceeded"
	// ReasonDrifted: images that were complete were deleted, lost their pin or content, or have another digest.
	ReasonDrifted = "Drifted"
	// ReasonImported: all images are complete.
	ReasonImported = "Imported"

	// ReasonDigestMismatch: the archive, its index.json or a blob has another digest than it should have.
	ReasonDigestMismatch = "DigestMismatch"
	// ReasonArchiveInvalid: the source holds no image archive, or a malformed one.
	ReasonArchiveInvalid = "ArchiveInvalid"
	// ReasonTruncated: the archive ends too early.
	ReasonTruncated = "Truncated"
	// ReasonLimitExceeded: the archive exceeds a bound on members, metadata, names or expansion.
	ReasonLimitExceeded = "LimitExceeded"
	// ReasonContentIncomplete: an image needs a blob that is neither in the archive nor on the node.
	ReasonContentIncomplete = "ContentIncomplete"
	// ReasonNoMatchingPlatform: the archive has no image for the node's platform.
	ReasonNoMatchingPlatform = "NoMatchingPlatform"
	// ReasonInvalidName: an image has no usable name, or spec.images selects none.
	ReasonInvalidName = "InvalidName"
	// ReasonNameConflict: a name exists with another digest and does not belong to this archive; see spec.conflictPolicy.
	ReasonNameConflict = "NameConflict"

	// ReasonInsufficientDisk: the node has too little free disk space.
	ReasonInsufficientDisk = "InsufficientDisk"
	// ReasonSourceNotFound: there is nothing at the source's URL or path.
	ReasonSourceNotFound = "SourceNotFound"
	// ReasonSourceDenied: the server or the file system denies access, the Secret with the credentials is absent, lacks
	// its label or is for other hosts, or agents do not read from this address or path. The last stalls.
	ReasonSourceDenied = "SourceDenied"
	// ReasonSourceUnavailable: the source could not be read to its end, or changed while it was read.
	ReasonSourceUnavailable = "SourceUnavailable"
	// ReasonRuntimeUnavailable: the node's containerd does not answer.
	ReasonRuntimeUnavailable = "RuntimeUnavailable"
	// ReasonInvalidSelector: spec.nodeSelector holds a key or value that no label can have.
	ReasonInvalidSelector = "InvalidSelector"
	// ReasonNoNodesSelected: spec.nodeSelector selects no node of the cluster.
	ReasonNoNodesSelected = "NoNodesSelected"
	// ReasonNotVisible: the images are complete in containerd, but CRI does not find them by their names.
	ReasonNotVisible = "NotVisible"
	// ReasonUnknown: a node reports a reason that this version does not know.
	ReasonUnknown = "Unknown"
	// ReasonImportFailed: an error that no other reason describes; see the message.
	ReasonImportFailed = "ImportFailed"
)

const (
	// AnnotationReconcileRequestedAt on an ImageArchive makes every selected node check its images and retry a failed
	// import, when the running import has ended instead of when the next attempt is due. Any new value has this effect; the
	// current time is customary.
	AnnotationReconcileRequestedAt = "tarlift.dev/reconcile-requested-at"
	// AnnotationHosts on a Secret names the hosts that it may be sent to, separated by commas, such as
	// "archives.example.com, 10.0.0.7:8443". Without it an agent does not use the Secret.
	AnnotationHosts = "tarlift.dev/hosts"
	// LabelSource with the value "true" on a Secret allows agents to read it for a source.
	LabelSource = "tarlift.dev/source"
)
