package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ServingPipeline is a Pipeline behind an HTTP server: a request goes through it and comes back as a response.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=spl
type ServingPipeline struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ServingPipelineSpec   `json:"spec"`
	Status ServingPipelineStatus `json:"status,omitzero"`
}

// ServingPipelineList is what a list request returns.
//
// +kubebuilder:object:root=true
type ServingPipelineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ServingPipeline `json:"items"`
}

// ServingPipelineSpec is what the user asks for.
type ServingPipelineSpec struct {
	Serving  ServingSpec  `json:"serving,omitzero"`
	Pipeline PipelineSpec `json:"pipeline,omitzero"`
}

// ServingSpec is the HTTP server.
type ServingSpec struct {
	// Auth asks callers for a bearer token. Default: none.
	Auth *Authorization `json:"auth,omitempty"`
	// Service makes a ClusterIP service. Default: false.
	Service bool `json:"service,omitempty"`
	// Ports to listen on. Default: https 8443, no http.
	Ports *Ports `json:"ports,omitempty"`
	// MsgIDHeaderKey is the header with the id of a request. Default: X-Numaflow-Id.
	MsgIDHeaderKey *string `json:"msgIDHeaderKey,omitempty"`
	// RequestTimeoutSeconds is how long a request waits for its response. Default: 120.
	RequestTimeoutSeconds *uint32 `json:"requestTimeoutSeconds,omitempty"`
	// Store is a user's container that keeps responses. Default: the buffer service does.
	Store             *ServingStore      `json:"store,omitempty"`
	ContainerTemplate *ContainerTemplate `json:"containerTemplate,omitempty"`
	// Replicas is the number of servers. Default: 1.
	Replicas *int32 `json:"replicas,omitempty"`

	AbstractPodTemplate `json:",inline"`
}

// ServingStore keeps responses in a user's container.
type ServingStore struct {
	Container *Container `json:"container,omitempty"`
}

// ServingPipelinePhase is where a ServingPipeline is in its life.
type ServingPipelinePhase string

// The phases of a ServingPipeline.
const (
	ServingPipelinePhaseUnknown  ServingPipelinePhase = ""
	ServingPipelinePhaseRunning  ServingPipelinePhase = "Running"
	ServingPipelinePhaseFailed   ServingPipelinePhase = "Failed"
	ServingPipelinePhaseDeleting ServingPipelinePhase = "Deleting"
)

// ServingPipelineStatus is what the operator observed.
type ServingPipelineStatus struct {
	Status `json:",inline"`
	// +optional
	Phase ServingPipelinePhase `json:"phase,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	LastUpdated metav1.Time `json:"lastUpdated,omitzero"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}
