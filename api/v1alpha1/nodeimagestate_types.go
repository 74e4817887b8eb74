package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeImageState is what one node has of the ImageArchives that select it. It bears the Node's name, belongs to
// it; its status is written by the agent on that node only, its spec by the controller only.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nis,categories=tarlift
// +kubebuilder:printcolumn:name="Archives",type=string,JSONPath=`.status.summary`,description="Archives whose images are all there, of those that select the node"
// +kubebuilder:printcolumn:name="Containerd",type=string,JSONPath=`.status.containerd.version`
// +kubebuilder:printcolumn:name="Snapshotter",type=string,JSONPath=`.status.containerd.snapshotter`
// +kubebuilder:printcolumn:name="Platform",type=string,JSONPath=`.status.containerd.platform`
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

// NodeImageStateSpec is what one node may do.
type NodeImageStateSpec struct {
	// admitted are the ImageArchives with a rollout that the node may import now. Of those it has imported, or failed
	// to, nothing is listed.
	// +optional
	// +listType=map
	// +listMapKey=archive
	Admitted []Admission `json:"admitted,omitempty"`
}

// Admission lets one node import one generation of an ImageArchive, or remembers that it did so in vain.
type Admission struct {
	// archive is the name of the ImageArchive.
	Archive string `json:"archive"`
	// uid of the ImageArchive, which tells it from an earlier one of the same name.
	UID types.UID `json:"uid"`
	// generation of the spec that may be imported.
	Generation int64 `json:"generation"`
	// time of the admission, or of its expiry.
	Time metav1.Time `json:"time"`
	// expired says that the node reported no progress for so long that its place was given to another. It must not
	// import any more, and counts as failed until it is let in again.
	// +optional
	Expired bool `json:"expired,omitempty"`
}

// NodeImageStateStatus is one node's report.
type NodeImageStateStatus struct {
	// containerd describes the runtime that images are imported into.
	// +optional
	Containerd *RuntimeInfo `json:"containerd,omitempty"`

	// archives are the ImageArchives that select this node, and the files in its drop-in directory.
	// +optional
	// +listType=atomic
	Archives []ArchiveState `json:"archives,omitempty"`

	// summary counts the archives that are ready, of all, for the reader's eye, such as 1/2.
	// +optional
	Summary string `json:"summary,omitempty"`
}

// RuntimeInfo describes a node's containerd.
type RuntimeInfo struct {
	// version of the daemon.
	// +optional
	Version string `json:"version,omitempty"`
	// snapshotter that layers are unpacked into.
	// +optional
	Snapshotter string `json:"snapshotter,omitempty"`
	// platform that images are chosen for, such as linux/arm64/v8.
	// +optional
	Platform string `json:"platform,omitempty"`
}

// ArchiveState is what a node has of one ImageArchive.
type ArchiveState struct {
	// name of the ImageArchive, or drop-in/ and the name of a file.
	Name string `json:"name"`
	// uid of the ImageArchive, which tells it from an earlier one of the same name.
	UID types.UID `json:"uid"`

	// observedGeneration is the generation of the spec that this entry is about.
	ObservedGeneration int64 `json:"observedGeneration"`

	// conditions are Ready and, while True, Reconciling or Stalled.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// digest of the whole archive, when it was read in full.
	// +optional
	Digest string `json:"digest,omitempty"`
	// indexDigest is the digest of the archive's index.json.
	// +optional
	IndexDigest string `json:"indexDigest,omitempty"`
	// size of the archive in bytes, where the source tells it.
	// +optional
	Size int64 `json:"size,omitempty"`
	// imageCount is the number of images, name@digest references not counted.
	// +optional
	ImageCount int32 `json:"imageCount,omitempty"`

	// bytes counts what the latest attempt moves. Absent before the first.
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
	Attempts int32 `json:"attempts,omitempty"`
	// lastError is the failure of the latest attempt that ended. Absent after a success.
	// +optional
	LastError *ImportError `json:"lastError,omitempty"`
}

// ImportError is why an attempt failed.
type ImportError struct {
	// reason is one of the reasons of a condition.
	Reason string `json:"reason"`
	// message says what failed.
	Message string `json:"message"`
}

// ArchiveBytes counts the bytes of blobs; headers and metadata of the archive are not counted.
type ArchiveBytes struct {
	// total is the size of the blobs that this node needs; while a stream is read, of the archive. 0 if unknown.
	Total int64 `json:"total"`
	// done is how much has been written; while a stream is read, how much of it has been read.
	Done int64 `json:"done"`
	// skipped is how much of total was present already and was not moved.
	Skipped int64 `json:"skipped"`
}
