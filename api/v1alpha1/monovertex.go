package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MonoVertex is a source, an optional function and a sink in one pod, without buffers between them.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +kubebuilder:resource:path=monovertices,shortName=mvtx
type MonoVertex struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   MonoVertexSpec   `json:"spec"`
	Status MonoVertexStatus `json:"status,omitzero"`
}

// MonoVertexList is what a list request returns.
//
// +kubebuilder:object:root=true
type MonoVertexList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MonoVertex `json:"items"`
}

// MonoVertexSpec is what the user asks for.
type MonoVertexSpec struct {
	// Replicas is the number of pods, within the bounds of Scale. Default: 1.
	Replicas *int32  `json:"replicas,omitempty"`
	Source   *Source `json:"source,omitempty"`
	Sink     *Sink   `json:"sink,omitempty"`
	// UDF is a map: a MonoVertex has no windows.
	UDF *UDF `json:"udf,omitempty"`

	AbstractPodTemplate `json:",inline"`

	// ContainerTemplate changes the container "numa", which moves the messages.
	ContainerTemplate *ContainerTemplate `json:"containerTemplate,omitempty"`
	// Volumes can be mounted by the user's containers.
	Volumes []corev1.Volume   `json:"volumes,omitempty"`
	Limits  *MonoVertexLimits `json:"limits,omitempty"`
	// Scale configures autoscaling.
	Scale          Scale              `json:"scale,omitzero"`
	InitContainers []corev1.Container `json:"initContainers,omitempty"`
	Sidecars       []corev1.Container `json:"sidecars,omitempty"`
	// DaemonTemplate changes the pod of the daemon.
	DaemonTemplate *DaemonTemplate     `json:"daemonTemplate,omitempty"`
	UpdateStrategy UpdateStrategy      `json:"updateStrategy,omitzero"`
	Lifecycle      MonoVertexLifecycle `json:"lifecycle,omitzero"`
	// Bypass sends messages with certain tags straight to a sink.
	Bypass *Bypass `json:"bypass,omitempty"`
	// Streaming reads and acknowledges message by message instead of batch by batch. Default: false.
	Streaming *bool `json:"streaming,omitempty"`
}

// MonoVertexLifecycle of a MonoVertex.
type MonoVertexLifecycle struct {
	// DesiredPhase is Running or Paused. Default: Running.
	DesiredPhase DesiredPhase `json:"desiredPhase,omitempty"`
}

// Bypass sends what the transformer or the map made straight to a sink; the first condition that holds decides.
type Bypass struct {
	Sink      *ForwardConditions `json:"sink,omitempty"`
	Fallback  *ForwardConditions `json:"fallback,omitempty"`
	OnSuccess *ForwardConditions `json:"onSuccess,omitempty"`
}

// MonoVertexPhase is where a MonoVertex is in its life.
type MonoVertexPhase string

// The phases of a MonoVertex.
const (
	MonoVertexPhaseUnknown  MonoVertexPhase = ""
	MonoVertexPhaseRunning  MonoVertexPhase = "Running"
	MonoVertexPhaseFailed   MonoVertexPhase = "Failed"
	MonoVertexPhasePaused   MonoVertexPhase = "Paused"
	MonoVertexPhasePausing  MonoVertexPhase = "Pausing"
	MonoVertexPhaseDeleting MonoVertexPhase = "Deleting"
)

// MonoVertexStatus is what the operator observed.
type MonoVertexStatus struct {
	Status `json:",inline"`
	// +optional
	Phase MonoVertexPhase `json:"phase,omitempty"`
	// +optional
	Replicas uint32 `json:"replicas,omitempty"`
	// +optional
	DesiredReplicas uint32 `json:"desiredReplicas,omitempty"`
	// +optional
	Selector string `json:"selector,omitempty"`
	// +optional
	Reason string `json:"reason,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	LastUpdated metav1.Time `json:"lastUpdated,omitzero"`
	// +optional
	LastScaledAt metav1.Time `json:"lastScaledAt,omitzero"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	ReadyReplicas uint32 `json:"readyReplicas,omitempty"`
	// +optional
	UpdatedReplicas uint32 `json:"updatedReplicas,omitempty"`
	// +optional
	UpdatedReadyReplicas uint32 `json:"updatedReadyReplicas,omitempty"`
	// +optional
	CurrentHash string `json:"currentHash,omitempty"`
	// +optional
	UpdateHash string `json:"updateHash,omitempty"`
}
