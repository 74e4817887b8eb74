package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ImageArchive imports the images of one tar archive into containerd on the selected nodes and keeps them there. The
// deletionPolicy decides what happens to the images when the ImageArchive is deleted.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=ia,categories=tarlift
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Nodes",type=string,JSONPath=`.status.nodes.summary`,description="Number of ready nodes and of selected nodes"
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress`,description="Percentage of the needed bytes that is present on the selected nodes"
// +kubebuilder:printcolumn:name="Images",type=integer,JSONPath=`.status.imageCount`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.artifact.displaySize`,description="Size of the archive"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Suspended",type=boolean,priority=1,JSONPath=`.spec.suspend`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type ImageArchive struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is the desired state. A change of source, digest, indexDigest, images, unpack, pin or conflictPolicy starts a
	// new import on every selected node.
	Spec ImageArchiveSpec `json:"spec"`

	// status aggregates the reports of the selected nodes. The NodeImageState of a node shows what that node has.
	// Defaults to an observedGeneration of -1, before the controller has written it.
	// +optional
	// +kubebuilder:default={"observedGeneration":-1}
	Status ImageArchiveStatus `json:"status,omitzero"`
}

// ImageArchiveList is a list of ImageArchives.
//
// +kubebuilder:object:root=true
type ImageArchiveList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ImageArchive `json:"items"`
}

// ImageArchiveSpec is the desired state of an ImageArchive: which archive to import, which of its images, and on which
// nodes.
type ImageArchiveSpec struct {
	// source is the location that every selected node reads the archive from.
	Source Source `json:"source"`

	// digest is the required digest of the whole archive. Every node then reads the archive in full, and creates no image
	// unless the digest matches. indexDigest gives the same protection, and lets nodes read only what is missing there.
	// Defaults to empty: the archive may have any digest.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	Digest string `json:"digest,omitempty"`

	// indexDigest is the required digest of the archive's index.json. The index refers to every blob by digest, so a node
	// imports nothing that the index does not cover. Defaults to empty: the index may have any digest.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	IndexDigest string `json:"indexDigest,omitempty"`

	// images selects the images to import and the names that they get. Defaults to all images, under the names that the
	// archive gives them.
	// +optional
	// +kubebuilder:default={}
	Images ImageSelection `json:"images,omitzero"`

	// nodeSelector selects nodes by their labels. Defaults to all nodes, as does an empty selector.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="operators are In, NotIn, Exists and DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, (e.operator in ['In', 'NotIn']) == (has(e.values) && size(e.values) > 0))",message="In and NotIn need values, Exists and DoesNotExist take none"
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// unpack extracts the layers into the snapshotter that the kubelet uses, so that the first start of a container does
	// not have to. Defaults to true.
	// +optional
	// +kubebuilder:default=true
	Unpack *bool `json:"unpack,omitempty"`

	// pin protects the images from the kubelet's garbage collection. Defaults to true.
	// +optional
	// +kubebuilder:default=true
	Pin *bool `json:"pin,omitempty"`

	// conflictPolicy decides what happens when an image name exists on a node with another digest and does not belong to
	// this ImageArchive. Fail does not change the image and stalls. Replace points the name at the image of this archive.
	// Defaults to Fail.
	// +optional
	// +kubebuilder:default=Fail
	ConflictPolicy ConflictPolicy `json:"conflictPolicy,omitempty"`

	// driftPolicy decides what happens when images that were complete are deleted, lose content or their pin, or get
	// another digest under their name. Reimport repairs them. Ignore only reports them. Defaults to Reimport.
	// +optional
	// +kubebuilder:default=Reimport
	DriftPolicy DriftPolicy `json:"driftPolicy,omitempty"`

	// deletionPolicy decides what happens to the images on a node when this ImageArchive is deleted, no longer selects
	// the images, or no longer selects the node. It applies to images that no other ImageArchive uses on that node.
	// Retain does not change the images. Unpin leaves them to the kubelet's garbage collection. Delete removes images
	// that no container uses and unpins the others. Defaults to Unpin.
	// +optional
	// +kubebuilder:default=Unpin
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`

	// rollout limits how many nodes import at a time. Defaults to no limit: all selected nodes import at once.
	// +optional
	Rollout *Rollout `json:"rollout,omitempty"`

	// interval is how often each node asks the source whether the archive has changed. A changed archive starts a new
	// import. Defaults to 0s: nodes do not ask.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) == duration('0s') || duration(self) >= duration('10s')",message="must be 0s or at least 10s"
	Interval *metav1.Duration `json:"interval,omitempty"`

	// suspend stops running imports and starts none. Images that are on the nodes stay there. Defaults to false.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
}

// Source is the location of an archive.
//
// +kubebuilder:validation:XValidation:rule="[has(self.http), has(self.file)].filter(x, x).size() == 1",message="exactly one of http and file must be set"
type Source struct {
	// http reads the archive from a web server. If the server supports range requests and sends an ETag or a
	// Last-Modified date, a node reads only the blobs that are missing on it and resumes broken connections. Otherwise the
	// node reads the archive from the beginning.
	// +optional
	HTTP *HTTPSource `json:"http,omitempty"`

	// file reads the archive from the file system of each node.
	// +optional
	File *FileSource `json:"file,omitempty"`
}

// HTTPSource is the location of an archive on a web server.
type HTTPSource struct {
	// url is the URL of the archive, with the scheme http or https. Credentials belong in a Secret, not in the URL. Status,
	// Events and logs do not show the query string.
	// +kubebuilder:validation:MaxLength=8192
	// +kubebuilder:validation:XValidation:rule="self.startsWith('http://') || self.startsWith('https://')",message="the scheme must be http or https"
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getHostname() != ''",message="must be an absolute URL with a host"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^https?://[^/?#]*@')",message="must not contain credentials; use secretRef"
	URL string `json:"url"`

	// secretRef names a Secret with the keys username and password, or bearerToken. The Secret has the label
	// tarlift.dev/source=true, and its annotation tarlift.dev/hosts lists the host of the url.
	// +optional
	SecretRef *SecretReference `json:"secretRef,omitempty"`

	// certSecretRef names a Secret with the optional keys ca.crt (the authorities to trust instead of the public ones),
	// tls.crt and tls.key (the agent's client certificate). The Secret has the label tarlift.dev/source=true, and its
	// annotation tarlift.dev/hosts lists the host of the url.
	// +optional
	CertSecretRef *SecretReference `json:"certSecretRef,omitempty"`
}

// SecretReference refers to a Secret in the namespace that the agents read Secrets from: by default their own.
type SecretReference struct {
	// name is the name of the Secret.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Name string `json:"name"`
}

// FileSource is the location of an archive in the archive directory of each selected node.
type FileSource struct {
	// path is the path of a regular file, relative to the agent's archive directory. Symbolic links below that directory
	// are not followed.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('/')",message="must be relative to the agent's archive directory"
	// +kubebuilder:validation:XValidation:rule="!self.matches('(^|/)[.][.](/|$)')",message="must not contain .."
	Path string `json:"path"`
}

// ImageSelection selects images by name and determines their names on the nodes.
type ImageSelection struct {
	// include selects the images whose full name, such as docker.io/library/busybox:1.36, matches one of these
	// patterns. In a pattern, * matches any characters within a path component and ** also matches across components.
	// Defaults to all images.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Include []string `json:"include,omitempty"`

	// exclude removes images from those that include selects, by the same kind of patterns. Defaults to none.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Exclude []string `json:"exclude,omitempty"`

	// rename changes the names of selected images. The first matching entry applies. Defaults to no changes.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Rename []Rename `json:"rename,omitempty"`

	// baseName is the repository for images that the archive names only by a tag, or not at all. Their names become
	// baseName:tag or baseName@digest. Defaults to empty: an archive that has only such images is refused.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	BaseName string `json:"baseName,omitempty"`

	// digestReferences also adds the name name@digest to each image, for pods that refer to an image by its digest.
	// Defaults to true.
	// +optional
	// +kubebuilder:default=true
	DigestReferences *bool `json:"digestReferences,omitempty"`
}

// Rename replaces an image name, or a prefix of image names.
//
// +kubebuilder:validation:XValidation:rule="self.from.endsWith('/') == self.to.endsWith('/')",message="from and to must both end in / (a prefix) or neither (a name)"
type Rename struct {
	// from is an exact full name or, if it ends in /, a prefix.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	From string `json:"from"`
	// to replaces from. It ends in / if and only if from does.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	To string `json:"to"`
}

// ConflictPolicy decides what happens to image names that belong to another owner.
//
// +kubebuilder:validation:Enum=Fail;Replace
type ConflictPolicy string

// The conflict policies.
const (
	ConflictFail    ConflictPolicy = "Fail"
	ConflictReplace ConflictPolicy = "Replace"
)

// DriftPolicy decides what happens to images that are no longer complete.
//
// +kubebuilder:validation:Enum=Reimport;Ignore
type DriftPolicy string

// The drift policies.
const (
	DriftReimport DriftPolicy = "Reimport"
	DriftIgnore   DriftPolicy = "Ignore"
)

// DeletionPolicy decides what happens to images that no ImageArchive uses any more.
//
// +kubebuilder:validation:Enum=Retain;Unpin;Delete
type DeletionPolicy string

// The deletion policies.
const (
	DeletionRetain DeletionPolicy = "Retain"
	DeletionUnpin  DeletionPolicy = "Unpin"
	DeletionDelete DeletionPolicy = "Delete"
)

// Rollout limits how many nodes import an archive at a time.
type Rollout struct {
	// maxConcurrent is the number of nodes that may import at a time, or a percentage of the selected nodes, rounded up.
	// Defaults to 10%.
	// +optional
	// +kubebuilder:default="10%"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 && self <= 2147483647 : self.matches('^([1-9][0-9]?|100)%$')",message="must be a number of at least 1, or a percentage from 1% to 100%"
	MaxConcurrent *intstr.IntOrString `json:"maxConcurrent,omitempty"`

	// maxFailed is the number of nodes that may fail. If more nodes have failed, no further node is admitted until the spec
	// changes, failed nodes recover, or the annotation tarlift.dev/reconcile-requested-at is set to a new value. Defaults
	// to 1.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	MaxFailed *int32 `json:"maxFailed,omitempty"`

	// progressDeadline is how long an admitted node may make no progress. The node then counts as failed, and another node
	// is admitted instead. Defaults to 10m.
	// +optional
	// +kubebuilder:default="10m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="must be at least 1s"
	ProgressDeadline *metav1.Duration `json:"progressDeadline,omitempty"`
}

// ImageArchiveStatus aggregates the reports of the selected nodes in counts and conditions.
type ImageArchiveStatus struct {
	// observedGeneration is the generation of the spec that this status describes, or -1 before the first one.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// conditions are Ready and, while their status is True, Reconciling or Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// artifact is the archive that most ready nodes have imported.
	// +optional
	Artifact *Artifact `json:"artifact,omitempty"`

	// images lists at most 64 of the images that most ready nodes have, sorted by name, without name@digest references.
	// imageCount counts all of them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Images []Image `json:"images,omitempty"`

	// imageCount is the number of images that most ready nodes have, without name@digest references.
	// +optional
	ImageCount int32 `json:"imageCount,omitempty"`

	// progress is the percentage of the bytes needed on the selected nodes that is present there, such as 45%.
	// +optional
	Progress string `json:"progress,omitempty"`

	// nodes counts the selected nodes.
	// +optional
	Nodes *NodeCounts `json:"nodes,omitempty"`

	// failures lists at most 10 of the nodes whose last attempt failed, stalled nodes first, then by name.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	Failures []NodeFailure `json:"failures,omitempty"`
}

// Artifact identifies an archive.
type Artifact struct {
	// digest is the digest of the whole archive. Absent if no node has read the archive in full.
	// +optional
	Digest string `json:"digest,omitempty"`
	// indexDigest is the digest of the archive's index.json.
	// +optional
	IndexDigest string `json:"indexDigest,omitempty"`
	// size is the size of the archive in bytes. Absent if the source does not tell it.
	// +optional
	Size int64 `json:"size,omitempty"`
	// displaySize is the size of the archive, rounded, in binary units, such as 45MiB.
	// +optional
	DisplaySize string `json:"displaySize,omitempty"`
}

// NodeCounts counts the selected nodes. desired is the sum of the other counts.
type NodeCounts struct {
	// desired is the number of selected nodes, including Nodes that are not Ready.
	Desired int32 `json:"desired"`
	// ready is the number of nodes that have every image.
	Ready int32 `json:"ready"`
	// importing is the number of nodes whose first attempt is running.
	Importing int32 `json:"importing"`
	// failed is the number of nodes whose last attempt failed. Each of them retries.
	Failed int32 `json:"failed"`
	// pending is the number of nodes that have not started or not reported.
	Pending int32 `json:"pending"`
	// summary is the number of ready nodes and of desired nodes, such as 2/3.
	Summary string `json:"summary"`
}

// NodeFailure describes the failure of one node.
type NodeFailure struct {
	// node is the name of the Node.
	Node string `json:"node"`
	// reason is the reason of the failure, as in the node's Ready condition.
	Reason string `json:"reason"`
	// message describes the failure.
	Message string `json:"message"`
}
