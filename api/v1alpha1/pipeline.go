package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Pipeline is a graph of vertices joined by durable buffers.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=pl
type Pipeline struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PipelineSpec   `json:"spec"`
	Status PipelineStatus `json:"status,omitzero"`
}

// PipelineList is what a list request returns.
//
// +kubebuilder:object:root=true
type PipelineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Pipeline `json:"items"`
}

// PipelineSpec is what the user asks for.
type PipelineSpec struct {
	// InterStepBufferServiceName names the InterStepBufferService that holds the buffers. Default: "default". Immutable.
	InterStepBufferServiceName string `json:"interStepBufferServiceName,omitempty"`

	// Vertices are the steps: at least one source and one sink.
	Vertices []AbstractVertex `json:"vertices,omitempty"`

	// Edges say where the messages of a vertex go. Each vertex is in at least one edge, and the graph is connected.
	Edges []Edge `json:"edges,omitempty"`

	// Lifecycle pauses the pipeline, and says how long pausing and deleting may wait for buffers to drain.
	Lifecycle Lifecycle `json:"lifecycle,omitzero"`

	// Limits are the defaults of every vertex's limits.
	Limits *PipelineLimits `json:"limits,omitempty"`

	// Watermark configures the tracking of event time.
	Watermark Watermark `json:"watermark,omitzero"`

	// Templates change the pods that the operator makes for this pipeline.
	Templates *Templates `json:"templates,omitempty"`

	// SideInputs are values that change slowly and that every pod of the vertices that ask for them can read.
	SideInputs []SideInput `json:"sideInputs,omitempty"`

	// InterStepBuffer configures how messages are kept between vertices.
	InterStepBuffer *InterStepBuffer `json:"interStepBuffer,omitempty"`

	// Ordered keeps the order of messages with the same keys in every vertex that does not say otherwise.
	Ordered *Ordered `json:"ordered,omitempty"`
}

// DesiredPhase is the phase that a user may ask for.
type DesiredPhase string

// The phases that a user may ask for.
const (
	DesiredRunning DesiredPhase = "Running"
	DesiredPaused  DesiredPhase = "Paused"
)

// Lifecycle of a Pipeline.
type Lifecycle struct {
	// DesiredPhase is Running or Paused. Default: Running.
	DesiredPhase DesiredPhase `json:"desiredPhase,omitempty"`

	// DeletionGracePeriodSeconds is how long a deletion waits for the buffers to drain. Default: 30.
	DeletionGracePeriodSeconds *int64 `json:"deletionGracePeriodSeconds,omitempty"`

	// PauseGracePeriodSeconds is how long pausing waits for the buffers to drain. Default: 30.
	PauseGracePeriodSeconds *int64 `json:"pauseGracePeriodSeconds,omitempty"`

	// DeleteGracePeriodSeconds is the old spelling of DeletionGracePeriodSeconds, which wins where both are set.
	DeleteGracePeriodSeconds *int64 `json:"deleteGracePeriodSeconds,omitempty"`
}

// Watermark configures the tracking of event time: a watermark T says that no message older than T is to come.
type Watermark struct {
	// Disabled turns watermarks off. Default: false.
	Disabled bool `json:"disabled,omitempty"`

	// MaxDelay is subtracted, once and at the source, from the watermark, so that messages may come that late. Default: 0s.
	MaxDelay *metav1.Duration `json:"maxDelay,omitempty"`

	// IdleSource lets the watermark go on while a source has nothing to read.
	IdleSource *IdleSource `json:"idleSource,omitempty"`
}

// IdleSource moves the watermark of a source that has nothing to read.
type IdleSource struct {
	// Threshold is how long a source must have read nothing to be idle. Required, above 0.
	Threshold *metav1.Duration `json:"threshold,omitempty"`

	// StepInterval is the time between two increments. Default: 0s, an increment at every occasion.
	StepInterval *metav1.Duration `json:"stepInterval,omitempty"`

	// IncrementBy is how far one increment moves the watermark. Required, above 0 and at most Threshold.
	IncrementBy *metav1.Duration `json:"incrementBy,omitempty"`

	// InitSourceDelay also lets a source go on that never read anything, after this time. At least Threshold. Default: never.
	InitSourceDelay *metav1.Duration `json:"initSourceDelay,omitempty"`
}

// InterStepBuffer configures how messages are kept between vertices.
type InterStepBuffer struct {
	// Compression of the payloads. Default: none.
	Compression *Compression `json:"compression,omitempty"`
}

// CompressionType names a compression. Numaflow's API writes None, GZIP, ZSTD and LZ4, and its data plane reads only lower
// case; both are accepted here.
type CompressionType string

// The compressions, as SetDefaults writes them.
const (
	CompressionNone CompressionType = "none"
	CompressionGZIP CompressionType = "gzip"
	CompressionZSTD CompressionType = "zstd"
	CompressionLZ4  CompressionType = "lz4"
)

// Compression of payloads between vertices.
type Compression struct {
	// Type is none, gzip, zstd or lz4, in either case. Default: none.
	Type CompressionType `json:"type,omitempty"`
}

// Ordered keeps the order of messages with the same keys: one replica per partition, one message at a time, no autoscaling.
type Ordered struct {
	// Enabled turns it on. Default: false.
	Enabled bool `json:"enabled,omitempty"`
}

// PipelinePhase is where a Pipeline is in its life.
type PipelinePhase string

// The phases of a Pipeline.
const (
	PipelinePhaseUnknown  PipelinePhase = ""
	PipelinePhaseRunning  PipelinePhase = "Running"
	PipelinePhaseFailed   PipelinePhase = "Failed"
	PipelinePhasePausing  PipelinePhase = "Pausing"
	PipelinePhasePaused   PipelinePhase = "Paused"
	PipelinePhaseDeleting PipelinePhase = "Deleting"
)

// PipelineStatus is what the operator observed.
type PipelineStatus struct {
	Status `json:",inline"`
	// +optional
	Phase PipelinePhase `json:"phase,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	LastUpdated metav1.Time `json:"lastUpdated,omitzero"`
	// +optional
	VertexCount *uint32 `json:"vertexCount,omitempty"`
	// +optional
	SourceCount *uint32 `json:"sourceCount,omitempty"`
	// +optional
	SinkCount *uint32 `json:"sinkCount,omitempty"`
	// +optional
	UDFCount *uint32 `json:"udfCount,omitempty"`
	// +optional
	MapUDFCount *uint32 `json:"mapUDFCount,omitempty"`
	// +optional
	ReduceUDFCount *uint32 `json:"reduceUDFCount,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// DrainedOnPause says whether all buffers were empty when the pipeline paused; false means that the grace period ran out.
	// +optional
	DrainedOnPause bool `json:"drainedOnPause,omitempty"`
}
