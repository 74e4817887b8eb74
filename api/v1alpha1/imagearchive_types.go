package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ImageArchive puts the images of one tar archive onto the selected nodes and keeps them there.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=ia,categories=tarlift
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Nodes",type=string,JSONPath=`.status.nodes.summary`,description="Nodes that have every image, of those selected"
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress`,description="Bytes that are on the selected nodes, of those that they need"
// +kubebuilder:printcolumn:name="Images",type=integer,JSONPath=`.status.imageCount`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.artifact.displaySize`,description="Size of the archive"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Suspended",type=boolean,priority=1,JSONPath=`.spec.suspend`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type ImageArchive struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is the desired state. A change of source, digest, indexDigest, images, unpack, pin or conflictPolicy is a new
	// import.
	Spec ImageArchiveSpec `json:"spec"`

	// status aggregates what the selected nodes report. The NodeImageState of each node has the details.
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

// ImageArchiveSpec describes which archive to import, which of its images, and on which nodes.
type ImageArchiveSpec struct {
	// source is where every selected node reads the archive.
	Source Source `json:"source"`

	// digest of the whole archive, as the source gives it. It makes every node read the archive in full, and no
	// name appears unless it matches. indexDigest verifies as much and lets nodes read only what they lack.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	Digest string `json:"digest,omitempty"`

	// indexDigest is the digest of the archive's index.json. Every blob hangs on it by digest, so nothing that it
	// does not vouch for is imported.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	IndexDigest string `json:"indexDigest,omitempty"`

	// images selects and names the images. Defaults to all images, under the names that the archive gives them ({}).
	// +optional
	// +kubebuilder:default={}
	Images ImageSelection `json:"images,omitzero"`

	// nodeSelector selects nodes by their labels. Defaults to all nodes.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="operators are In, NotIn, Exists and DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, (e.operator in ['In', 'NotIn']) == (has(e.values) && size(e.values) > 0))",message="In and NotIn need values, Exists and DoesNotExist take none"
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// unpack the layers into the snapshotter that the kubelet uses, so that the first pod starts without unpacking. Defaults
	// to true.
	// +optional
	// +kubebuilder:default=true
	Unpack *bool `json:"unpack,omitempty"`

	// pin the images, so that the kubelet's garbage collection does not remove them. Defaults to true.
	// +optional
	// +kubebuilder:default=true
	Pin *bool `json:"pin,omitempty"`

	// conflictPolicy decides what happens to a name that exists on a node with another digest and was not put
	// there by this archive: Fail leaves it and stalls, Replace makes it this archive's. Defaults to Fail.
	// +optional
	// +kubebuilder:default=Fail
	ConflictPolicy ConflictPolicy `json:"conflictPolicy,omitempty"`

	// driftPolicy decides what happens when images that were complete are lost, lose their pin, or get another digest
	// under their name: Reimport heals them, Ignore only reports it. Defaults to Reimport.
	// +optional
	// +kubebuilder:default=Reimport
	DriftPolicy DriftPolicy `json:"driftPolicy,omitempty"`

	// deletionPolicy decides what happens on a node to images that no ImageArchive wants there any more, because it
	// was deleted, no longer lists them, or no longer selects the node: Retain leaves them as they are, Unpin leaves
	// them to the kubelet's garbage collection, Delete removes those that no container uses and unpins the others.
	// Defaults to Unpin.
	// +optional
	// +kubebuilder:default=Unpin
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`

	// rollout limits how many nodes import at a time. Defaults to all nodes at once.
	// +optional
	Rollout *Rollout `json:"rollout,omitempty"`

	// interval is how often each node asks the source whether the archive has changed; a change is a new import.
	// Defaults to 0s: never, only a change of the spec is.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) == duration('0s') || duration(self) >= duration('10s')",message="must be 0s or at least 10s"
	Interval *metav1.Duration `json:"interval,omitempty"`

	// suspend stops running imports and begins none. The images on the nodes stay. Defaults to false.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
}

// Source is where nodes read an archive.
//
// +kubebuilder:validation:XValidation:rule="[has(self.http), has(self.file)].filter(x, x).size() == 1",message="exactly one of http and file must be set"
type Source struct {
	// http reads from a web server. With HTTP ranges and an ETag or a Last-Modified date, a node reads only what
	// it lacks and continues where a connection broke; without them it reads the archive from its beginning.
	// +optional
	HTTP *HTTPSource `json:"http,omitempty"`

	// file reads from the node's own file system.
	// +optional
	File *FileSource `json:"file,omitempty"`
}

// HTTPSource is an archive on a web server.
type HTTPSource struct {
	// url of the archive. Credentials belong in a Secret. The query string does not appear in status, Events or logs.
	// +kubebuilder:validation:MaxLength=8192
	// +kubebuilder:validation:XValidation:rule="self.startsWith('http://') || self.startsWith('https://')",message="the scheme must be http or https"
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getHostname() != ''",message="must be an absolute URL with a host"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^https?://[^/?#]*@')",message="must not contain credentials; use secretRef"
	URL string `json:"url"`

	// secretRef names a Secret with the keys username and password, or bearerToken. It lies in the agent's
	// namespace, bears the label tarlift.dev/source=true, and names the URL's host in its annotation tarlift.dev/hosts.
	// +optional
	SecretRef *SecretReference `json:"secretRef,omitempty"`

	// certSecretRef names a Secret with the keys ca.crt (whom to trust) and tls.crt and tls.key (who the agent
	// is), each optional. It lies in the agent's namespace, bears the label tarlift.dev/source=true, and names the URL's
	// host in its annotation tarlift.dev/hosts.
	// +optional
	CertSecretRef *SecretReference `json:"certSecretRef,omitempty"`
}

// SecretReference names a Secret in the agent's namespace.
type SecretReference struct {
	// name of the Secret.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	Name string `json:"name"`
}

// FileSource is an archive in the archive directory of each selected node.
type FileSource struct {
	// path of a regular file, relative to the agent's archive directory. Links do not lead out of that directory.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('/')",message="must be relative to the agent's archive directory"
	// +kubebuilder:validation:XValidation:rule="!self.matches('(^|/)[.][.](/|$)')",message="must not contain .."
	Path string `json:"path"`
}

// ImageSelection selects images by name, and renames them.
type ImageSelection struct {
	// include selects the images whose full name, such as docker.io/library/busybox:1.36, matches one of these
	// globs: * stands for anything within a path component, ** also across. Defaults to all images.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Include []string `json:"include,omitempty"`

	// exclude removes images that include has selected, by the same globs.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	Exclude []string `json:"exclude,omitempty"`

	// rename gives selected images another name; the first entry that matches counts.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Rename []Rename `json:"rename,omitempty"`

	// baseName is the repository of images that the archive names only by a tag, or not at all: they become
	// baseName:tag or baseName@digest.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	BaseName string `json:"baseName,omitempty"`

	// digestReferences also makes each image known as name@digest, which pods that name an image by digest need. Defaults
	// to true.
	// +optional
	// +kubebuilder:default=true
	DigestReferences *bool `json:"digestReferences,omitempty"`
}

// Rename replaces a name, or the beginning of names.
//
// +kubebuilder:validation:XValidation:rule="self.from.endsWith('/') == self.to.endsWith('/')",message="from and to must both end in / (a prefix) or neither (a name)"
type Rename struct {
	// from is one exact full name, or a prefix when it ends in /.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	From string `json:"from"`
	// to takes the place of from.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	To string `json:"to"`
}

// ConflictPolicy decides about names that are somebody else's.
//
// +kubebuilder:validation:Enum=Fail;Replace
type ConflictPolicy string

// The conflict policies.
const (
	ConflictFail    ConflictPolicy = "Fail"
	ConflictReplace ConflictPolicy = "Replace"
)

// DriftPolicy decides about images that were complete and no longer are.
//
// +kubebuilder:validation:Enum=Reimport;Ignore
type DriftPolicy string

// The drift policies.
const (
	DriftReimport DriftPolicy = "Reimport"
	DriftIgnore   DriftPolicy = "Ignore"
)

// DeletionPolicy decides about images that no archive wants any more.
//
// +kubebuilder:validation:Enum=Retain;Unpin;Delete
type DeletionPolicy string

// The deletion policies.
const (
	DeletionRetain DeletionPolicy = "Retain"
	DeletionUnpin  DeletionPolicy = "Unpin"
	DeletionDelete DeletionPolicy = "Delete"
)

// Rollout limits how an archive spreads over the selected nodes.
type Rollout struct {
	// maxConcurrent is how many nodes may import at a time: a number, or a percentage of the selected nodes, rounded
	// up. Defaults to 10%.
	// +optional
	// +kubebuilder:default="10%"
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 && self <= 2147483647 : self.matches('^([1-9][0-9]?|100)%$')",message="must be a number of at least 1, or a percentage from 1% to 100%"
	MaxConcurrent *intstr.IntOrString `json:"maxConcurrent,omitempty"`

	// maxFailed is how many nodes may fail. When more have, no further node begins, until the spec changes, nodes
	// recover, or the annotation tarlift.dev/reconcile-requested-at changes. Defaults to 1.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	MaxFailed *int32 `json:"maxFailed,omitempty"`

	// progressDeadline is how long an admitted node may report no progress. Then it counts as failed, and another node
	// is admitted. Defaults to 10m.
	// +optional
	// +kubebuilder:default="10m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="must be at least 1s"
	ProgressDeadline *metav1.Duration `json:"progressDeadline,omitempty"`
}

// ImageArchiveStatus aggregates the selected nodes: counts and conditions, never a list of nodes.
type ImageArchiveStatus struct {
	// observedGeneration is the generation of the spec that this status is about; -1 before the first.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// conditions are Ready and, while True, Reconciling or Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// artifact is the archive that the ready nodes have imported.
	// +optional
	Artifact *Artifact `json:"artifact,omitempty"`

	// images are the images that most ready nodes have, by name; at most 64, name@digest references not listed.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Images []Image `json:"images,omitempty"`

	// imageCount is the number of images that the archive gives a node, name@digest references not counted.
	// +optional
	ImageCount int32 `json:"imageCount,omitempty"`

	// progress is how much of what the selected nodes need is there, in percent, such as 45%.
	// +optional
	Progress string `json:"progress,omitempty"`

	// nodes counts the selected nodes.
	// +optional
	Nodes *NodeCounts `json:"nodes,omitempty"`

	// failures are samples of nodes whose last attempt failed: those that stall first, then by name.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	Failures []NodeFailure `json:"failures,omitempty"`
}

// Artifact identifies an archive.
type Artifact struct {
	// digest of the whole archive. Absent when no node has read it in full.
	// +optional
	Digest string `json:"digest,omitempty"`
	// indexDigest is the digest of its index.json.
	// +optional
	IndexDigest string `json:"indexDigest,omitempty"`
	// size of the archive in bytes. Absent when the source does not tell.
	// +optional
	Size int64 `json:"size,omitempty"`
	// displaySize is size for display: rounded, in binary units, such as 45MiB.
	// +optional
	DisplaySize string `json:"displaySize,omitempty"`
}

// NodeCounts counts the selected nodes; desired is the sum of the others.
type NodeCounts struct {
	// desired is the number of selected nodes, those included that are not Ready.
	Desired int32 `json:"desired"`
	// ready is the number of nodes that have every image.
	Ready int32 `json:"ready"`
	// importing is the number of nodes whose first attempt is under way.
	Importing int32 `json:"importing"`
	// failed is the number of nodes whose last attempt failed; each will try again.
	Failed int32 `json:"failed"`
	// pending is the number of nodes that have not begun, or are silent.
	Pending int32 `json:"pending"`
	// summary is ready/desired for display, such as 2/3.
	Summary string `json:"summary"`
}

// NodeFailure is the failure of one node.
type NodeFailure struct {
	// node is the name of the Node.
	Node string `json:"node"`
	// reason is one of the reasons of a condition.
	Reason string `json:"reason"`
	// message says what failed.
	Message string `json:"message"`
}
