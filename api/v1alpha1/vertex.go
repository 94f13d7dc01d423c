package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Vertex is one step of a Pipeline. The operator makes it from an element of spec.vertices; people write it only to scale it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +kubebuilder:resource:path=vertices,shortName=vtx
type Vertex struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VertexSpec   `json:"spec"`
	Status VertexStatus `json:"status,omitzero"`
}

// VertexList is what a list request returns.
//
// +kubebuilder:object:root=true
type VertexList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Vertex `json:"items"`
}

// AbstractVertex is an element of a pipeline's vertices: exactly one of Source, Sink and UDF is set.
type AbstractVertex struct {
	// Name is unique in the pipeline, an RFC 1035 label: lower-case letters, digits and '-', starting with a letter.
	Name string `json:"name"`

	// Source brings messages in.
	Source *Source `json:"source,omitempty"`

	// Sink takes messages out.
	Sink *Sink `json:"sink,omitempty"`

	// UDF changes messages on their way.
	UDF *UDF `json:"udf,omitempty"`

	// ContainerTemplate changes the container "numa", which moves the messages.
	ContainerTemplate *ContainerTemplate `json:"containerTemplate,omitempty"`

	// InitContainerTemplate changes the container "init".
	InitContainerTemplate *ContainerTemplate `json:"initContainerTemplate,omitempty"`

	AbstractPodTemplate `json:",inline"`

	// Volumes can be mounted by the user's containers.
	Volumes []corev1.Volume `json:"volumes,omitempty"`

	// Limits override the pipeline's limits, key by key.
	Limits *VertexLimits `json:"limits,omitempty"`

	// Scale configures autoscaling.
	Scale Scale `json:"scale,omitzero"`

	// InitContainers run before the vertex starts.
	InitContainers []corev1.Container `json:"initContainers,omitempty"`

	// Sidecars run beside the vertex. Not on a source.
	Sidecars []corev1.Container `json:"sidecars,omitempty"`

	// Partitions is the number of buffers that this vertex reads from. Always 1 for a source and for a reduce without keys.
	// Default: 1.
	Partitions *int32 `json:"partitions,omitempty"`

	// SideInputs names the side inputs that the user's containers read.
	SideInputs []string `json:"sideInputs,omitempty"`

	// SideInputsContainerTemplate changes the containers that fetch side inputs.
	SideInputsContainerTemplate *ContainerTemplate `json:"sideInputsContainerTemplate,omitempty"`

	// UpdateStrategy says how pods are replaced by new ones.
	UpdateStrategy UpdateStrategy `json:"updateStrategy,omitzero"`

	// Ordered overrides the pipeline's setting.
	Ordered *Ordered `json:"ordered,omitempty"`
}

// VertexSpec is an AbstractVertex with what it must know about its pipeline.
type VertexSpec struct {
	AbstractVertex `json:",inline"`

	PipelineName               string           `json:"pipelineName,omitempty"`
	InterStepBufferServiceName string           `json:"interStepBufferServiceName,omitempty"`
	Replicas                   *int32           `json:"replicas,omitempty"` // Default: 1.
	FromEdges                  []CombinedEdge   `json:"fromEdges,omitempty"`
	ToEdges                    []CombinedEdge   `json:"toEdges,omitempty"`
	Watermark                  Watermark        `json:"watermark,omitzero"`
	Lifecycle                  VertexLifecycle  `json:"lifecycle,omitzero"`
	InterStepBuffer            *InterStepBuffer `json:"interStepBuffer,omitempty"`
}

// VertexLifecycle of a Vertex.
type VertexLifecycle struct {
	// DesiredPhase is Running or Paused. Default: Running.
	DesiredPhase DesiredPhase `json:"desiredPhase,omitempty"`
}

// VertexPhase is where a Vertex is in its life.
type VertexPhase string

// The phases of a Vertex.
const (
	VertexPhaseUnknown VertexPhase = ""
	VertexPhaseRunning VertexPhase = "Running"
	VertexPhasePaused  VertexPhase = "Paused"
	VertexPhaseFailed  VertexPhase = "Failed"
)

// VertexStatus is what the operator observed.
type VertexStatus struct {
	Status `json:",inline"`
	// +optional
	Phase VertexPhase `json:"phase,omitempty"`
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

// IsSource says whether the vertex brings messages in.
func (v *AbstractVertex) IsSource() bool { return v.Source != nil }

// IsSink says whether the vertex takes messages out.
func (v *AbstractVertex) IsSink() bool { return v.Sink != nil }

// IsMap says whether the vertex changes messages one by one.
func (v *AbstractVertex) IsMap() bool { return v.UDF != nil && v.UDF.GroupBy == nil }

// IsReduce says whether the vertex groups messages by window.
func (v *AbstractVertex) IsReduce() bool { return v.UDF != nil && v.UDF.GroupBy != nil }

// Type is the role of the vertex, "" when it has none.
func (v *AbstractVertex) Type() VertexType {
	switch {
	case v.IsSource():
		return VertexTypeSource
	case v.IsSink():
		return VertexTypeSink
	case v.IsReduce():
		return VertexTypeReduceUDF
	case v.IsMap():
		return VertexTypeMapUDF
	}
	return ""
}

// PartitionCount is how many buffers the vertex reads from, whatever the manifest says for those that always have one.
func (v *AbstractVertex) PartitionCount() int {
	if v.IsSource() || v.IsReduce() && !v.UDF.GroupBy.Keyed || v.Partitions == nil || *v.Partitions < 1 {
		return 1
	}
	return int(*v.Partitions)
}

// IsOrdered says whether the vertex keeps the order of messages with the same keys.
func (p *PipelineSpec) IsOrdered(v *AbstractVertex) bool {
	if v.Ordered != nil {
		return v.Ordered.Enabled
	}
	return p.Ordered != nil && p.Ordered.Enabled
}
