package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeImageState is one node's report about the ImageArchives that select it. It bears the Node's name and belongs to it.
// The node's agent writes its status, the controller its spec.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nis,categories=tarlift
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.summary`,description="Archives whose images are all there, of those that select the node"
// +kubebuilder:printcolumn:name="Containerd",type=string,JSONPath=`.status.containerd.version`
// +kubebuilder:printcolumn:name="Snapshotter",type=string,JSONPath=`.status.containerd.snapshotter`
// +kubebuilder:printcolumn:name="Platform",type=string,JSONPath=`.status.containerd.platform`
// +kubebuilder:printcolumn:name="Agent",type=string,priority=1,JSONPath=`.status.agentVersion`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeImageState struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what the controller tells the node. The node's agent does not write it.
	// +optional
	Spec NodeImageStateSpec `json:"spec,omitzero"`

	// status is what the node's agent reports.
	// +optional
	Status NodeImageStateStatus `json:"status,omitzero"`
}

// NodeImageStateList is a list of NodeImageStates.
//
// +kubebuilder:object:root=true
type NodeImageStateList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeImageState `json:"items"`
}

// NodeImageStateSpec is what one node may import.
type NodeImageStateSpec struct {
	// admitted are the ImageArchives with a rollout that the node may import now.
	// +optional
	// +listType=map
	// +listMapKey=archive
	// +kubebuilder:validation:MaxItems=256
	Admitted []Admission `json:"admitted,omitempty"`
}

// Admission lets one node import one generation of an ImageArchive. An agent stops the import when its admission is removed.
type Admission struct {
	// archive is the name of the ImageArchive.
	// +kubebuilder:validation:MaxLength=253
	Archive string `json:"archive"`
	// uid of the ImageArchive, which tells it from an earlier one of the same name.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	UID types.UID `json:"uid"`
	// generation of the spec that may be imported.
	Generation int64 `json:"generation"`
	// time of the admission. The agent repeats it as admittedTime in what it reports under this admission.
	Time metav1.Time `json:"time"`
}

// MaxArchives is how many archives a node reports; the other ones are counted in omitted.
const MaxArchives = 256

// MaxImages is how many images a status lists; imageCount counts all.
const MaxImages = 64

// NodeImageStateStatus is one node's report.
type NodeImageStateStatus struct {
	// agentVersion is the version of the node's agent.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	AgentVersion string `json:"agentVersion,omitempty"`

	// containerd describes the runtime that images are imported into.
	// +optional
	Containerd *RuntimeInfo `json:"containerd,omitempty"`

	// archives are the ImageArchives that select this node, and the files in its drop-in directory.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Archives []ArchiveState `json:"archives,omitempty"`

	// omitted is the number of archives beyond 256, which are imported but not listed.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Omitted int32 `json:"omitted,omitempty"`

	// summary is the number of archives that are ready and of all, such as 1/2.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9]{1,9}/[0-9]{1,9}$`
	Summary string `json:"summary,omitempty"`
}

// RuntimeInfo describes a node's containerd.
type RuntimeInfo struct {
	// version of the daemon.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Version string `json:"version,omitempty"`
	// snapshotter that layers are unpacked into.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Snapshotter string `json:"snapshotter,omitempty"`
	// platform that images are chosen for, such as linux/arm64/v8.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Platform string `json:"platform,omitempty"`
}

// ArchiveState is what a node has of one archive. Of an archive that is ready, conditions, bytes and errors are absent.
type ArchiveState struct {
	// name of the ImageArchive, or drop-in/ and the name of a file.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// uid of the ImageArchive, which tells it from an earlier one of the same name.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	UID types.UID `json:"uid"`

	// observedGeneration is the generation of the spec that this entry is about.
	ObservedGeneration int64 `json:"observedGeneration"`

	// ready is true when every image is complete under all of its names.
	// +optional
	Ready bool `json:"ready,omitempty"`

	// conditions are Ready and, while True, Reconciling or Stalled. Absent while the archive is ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=3
	// +kubebuilder:validation:XValidation:rule="self.all(c, size(c.message) <= 1024 && size(c.reason) <= 64)",message="a condition's message has at most 1024 characters, and its reason 64"
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// admittedTime is the time of the admission that this entry was reported under. Absent without a rollout.
	// +optional
	AdmittedTime *metav1.Time `json:"admittedTime,omitempty"`

	// digest of the whole archive, when it was read in full.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	Digest string `json:"digest,omitempty"`
	// indexDigest is the digest of the archive's index.json.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	IndexDigest string `json:"indexDigest,omitempty"`
	// size of the archive in bytes, where the source tells it.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Size int64 `json:"size,omitempty"`
	// imageCount is the number of images, name@digest references not counted.
	// +optional
	// +kubebuilder:validation:Minimum=0
	ImageCount int32 `json:"imageCount,omitempty"`
	// images are the images of an archive that is ready. Absent where the ImageArchive's status lists the same.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Images []Image `json:"images,omitempty"`

	// bytes counts what the latest attempt moves. Absent before the first, and when the archive is ready.
	// +optional
	Bytes *ArchiveBytes `json:"bytes,omitempty"`

	// startTime is when the first attempt for this spec began.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// completionTime is when the images were complete.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`
	// attempts is the number of attempts for this spec, the running one included.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Attempts int32 `json:"attempts,omitempty"`
	// nextAttemptTime is when the import is tried again.
	// +optional
	NextAttemptTime *metav1.Time `json:"nextAttemptTime,omitempty"`
	// lastError is the failure of the latest attempt that ended. Absent after a success.
	// +optional
	LastError *ImportError `json:"lastError,omitempty"`
}

// Image is an image under one name.
type Image struct {
	// name is the full name, such as docker.io/library/busybox:1.36.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Name string `json:"name"`
	// digest of what the name stands for: the index of a multi-platform image, otherwise its manifest.
	// +kubebuilder:validation:Pattern=`^(sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128})$`
	Digest string `json:"digest"`
}

// ImportError is why an attempt failed.
type ImportError struct {
	// reason is one of the reasons of a condition.
	// +kubebuilder:validation:Pattern=`^[A-Za-z]{1,64}$`
	Reason string `json:"reason"`
	// message says what failed.
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message"`
}

// ArchiveBytes counts the bytes of blobs; headers and metadata of the archive are not counted.
type ArchiveBytes struct {
	// total is the size of the blobs that this node needs; while a stream is read, of the archive. 0 if unknown.
	// +kubebuilder:validation:Minimum=0
	Total int64 `json:"total"`
	// done is how much has been written; while a stream is read, how much of it has been read.
	// +kubebuilder:validation:Minimum=0
	Done int64 `json:"done"`
	// skipped is how much of total was present already and was not moved.
	// +kubebuilder:validation:Minimum=0
	Skipped int64 `json:"skipped"`
}
