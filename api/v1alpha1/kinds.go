package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group, Version and APIVersion name the API whose manifests we accept unchanged.
const (
	Group      = "numaflow.numaproj.io"
	Version    = "v1alpha1"
	APIVersion = Group + "/" + Version
)

// GroupVersion is APIVersion in the form that client libraries want.
var GroupVersion = schema.GroupVersion{Group: Group, Version: Version}

// The kinds of APIVersion.
const (
	KindPipeline               = "Pipeline"
	KindVertex                 = "Vertex"
	KindMonoVertex             = "MonoVertex"
	KindInterStepBufferService = "InterStepBufferService"
	KindServingPipeline        = "ServingPipeline"
)

// Manifest is a *Pipeline, *Vertex, *MonoVertex, *InterStepBufferService or *ServingPipeline, or an object of another API that stands beside them.
//
// +kubebuilder:object:generate=false
type Manifest interface {
	metav1.Object
	// GetObjectKind gives apiVersion and kind as they were written. Both are empty in an object that was made in memory.
	GetObjectKind() schema.ObjectKind
}

// Status is the part that the status of every kind starts with.
type Status struct {
	// Conditions say what was observed, one per aspect.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
