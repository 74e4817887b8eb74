package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeImageState is the report of one node about the ImageArchives that select the node. It has the name of the Node and is
// deleted with the Node. The node's agent writes the status, the controller writes the spec.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nis,categories=tarlift
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.summary`,description="Number of ready archives and of all archives"
// +kubebuilder:printcolumn:name="Containerd",type=string,JSONPath=`.status.containerd.version`
// +kubebuilder:printcolumn:name="Snapshotter",type=string,JSONPath=`.status.containerd.snapshotter`
// +kubebuilder:printcolumn:name="Platform",type=string,JSONPath=`.status.containerd.platform`
// +kubebuilder:printcolumn:name="Agent",type=string,priority=1,JSONPath=`.status.agentVersion`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeImageState struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what the controller admits on the node. The node's agent does not write it.
	// +optional
	Spec NodeImageStateSpec `json:"spec,omitzero"`

	// status is the report of the node's agent.
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

// NodeImageStateSpec lists what one node may import.
type NodeImageStateSpec struct {
	// admitted lists the ImageArchives with a rollout that the node may import now. ImageArchives without a rollout need no
	// admission.
	// +optional
	// +listType=map
	// +listMapKey=archive
	// +kubebuilder:validation:MaxItems=256
	Admitted []Admission `json:"admitted,omitempty"`
}

// Admission allows one node to import one generation of an ImageArchive. The agent stops the import if the admission is
// removed.
type Admission struct {
	// archive is the name of the ImageArchive.
	// +kubebuilder:validation:MaxLength=253
	Archive string `json:"archive"`
	// uid is the UID of the ImageArchive.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	UID types.UID `json:"uid"`
	// generation is the generation of the ImageArchive's spec that the node may import.
	Generation int64 `json:"generation"`
	// time is the time of the admission. The agent copies it to admittedTime in what it reports under this admission.
	Time metav1.Time `json:"time"`
}

// MaxArchives is how many archives a node reports; the other ones are counted in omitted.
const MaxArchives = 256

// MaxImages is how many images a status lists; imageCount counts all.
const MaxImages = 64

// MaxImageName is how long the name of an image in a status may be, in bytes.
const MaxImageName = 512

// NodeImageStateStatus is the report of one node.
type NodeImageStateStatus struct {
	// agentVersion is the version of the node's agent.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	AgentVersion string `json:"agentVersion,omitempty"`

	// containerd describes the container runtime that images are imported into.
	// +optional
	Containerd *RuntimeInfo `json:"containerd,omitempty"`

	// archives lists the ImageArchives that select this node, and the files in its drop-in directory.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Archives []ArchiveState `json:"archives,omitempty"`

	// omitted is the number of archives that are not listed, because archives has at most 256 entries. The node imports
	// them as well.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Omitted int32 `json:"omitted,omitempty"`

	// summary is the number of ready archives and of all archives, such as 1/2.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9]{1,9}/[0-9]{1,9}$`
	Summary string `json:"summary,omitempty"`
}

// RuntimeInfo describes the containerd of a node.
type RuntimeInfo struct {
	// version is the version of containerd.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Version string `json:"version,omitempty"`
	// snapshotter is the snapshotter that layers are unpacked into.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Snapshotter string `json:"snapshotter,omitempty"`
	// platform is the platform that images are chosen for, such as linux/arm64/v8.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Platform string `json:"platform,omitempty"`
}

// ArchiveState is the state of one archive on a node. conditions, bytes and lastError are absent if the archive is ready.
type ArchiveState struct {
	// name is the name of the ImageArchive, or drop-in/ and the name of a file.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// uid is the UID of the ImageArchive.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	UID types.UID `json:"uid"`

	// observedGeneration is the generation of the spec that this entry describes.
	ObservedGeneration int64 `json:"observedGeneration"`

	// ready is true if every image is complete under all of its names. Absent otherwise.
	// +optional
	Ready bool `json:"ready,omitempty"`

	// conditions are Ready and, while their status is True, Reconciling or Stalled. Absent if the archive is ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=3
	// +kubebuilder:validation:XValidation:rule="self.all(c, size(c.message) <= 1024 && size(c.reason) <= 64)",message="a condition's message has at most 1024 characters, and its reason 64"
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// admittedTime is the time of the admission under which the agent reports this entry. Absent without a rollout.
	// +optional
	AdmittedTime *metav1.Time `json:"admittedTime,omitempty"`

	// digest is the digest of the whole archive. Absent if the node has not read the archive in full.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	Digest string `json:"digest,omitempty"`
	// indexDigest is the digest of the archive's index.json.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[a-f0-9]{64}$`
	IndexDigest string `json:"indexDigest,omitempty"`
	// size is the size of the archive in bytes. Absent if the source does not tell it.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Size int64 `json:"size,omitempty"`
	// imageCount is the number of images, without name@digest references.
	// +optional
	// +kubebuilder:validation:Minimum=0
	ImageCount int32 `json:"imageCount,omitempty"`
	// images lists at most 64 images of an archive that is ready. Absent if the status of the ImageArchive lists the same
	// images.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Images []Image `json:"images,omitempty"`

	// bytes is the progress of the latest attempt. Absent before the first attempt and if the archive is ready.
	// +optional
	Bytes *ArchiveBytes `json:"bytes,omitempty"`

	// startTime is when the first attempt for this spec started.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// completionTime is when the images were complete.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`
	// attempts is the number of attempts for this spec, including a running one.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Attempts int32 `json:"attempts,omitempty"`
	// nextAttemptTime is when the agent retries the import. Absent if no retry is planned.
	// +optional
	NextAttemptTime *metav1.Time `json:"nextAttemptTime,omitempty"`
	// lastError describes why the latest finished attempt failed. Absent after a success.
	// +optional
	LastError *ImportError `json:"lastError,omitempty"`
}

// Image is an image name and its digest.
type Image struct {
	// name is the full name of the image, such as docker.io/library/busybox:1.36.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Name string `json:"name"`
	// digest is the digest that the name refers to: that of the index of a multi-platform image, or else of the manifest.
	// +kubebuilder:validation:Pattern=`^(sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128})$`
	Digest string `json:"digest"`
}

// ImportError describes why an attempt failed.
type ImportError struct {
	// reason is the reason of the failure, as in the Ready condition.
	// +kubebuilder:validation:Pattern=`^[A-Za-z]{1,64}$`
	Reason string `json:"reason"`
	// message describes the failure.
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message"`
}

// ArchiveBytes counts bytes of blobs, without the archive's headers and metadata.
type ArchiveBytes struct {
	// total is the size of the blobs that the node needs. While the node reads a stream, total is the size of the archive.
	// 0 means unknown.
	// +kubebuilder:validation:Minimum=0
	Total int64 `json:"total"`
	// done is how much has been written. While the node reads a stream, done is how much of the stream has been read.
	// +kubebuilder:validation:Minimum=0
	Done int64 `json:"done"`
	// skipped is how much of total was present on the node and was not transferred.
	// +kubebuilder:validation:Minimum=0
	Skipped int64 `json:"skipped"`
}
