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

// kinds makes an empty manifest of each kind. It is the one list of kinds that decoding knows.
var kinds = map[string]func() Manifest{
	KindPipeline:               func() Manifest { return &Pipeline{} },
	KindVertex:                 func() Manifest { return &Vertex{} },
	KindMonoVertex:             func() Manifest { return &MonoVertex{} },
	KindInterStepBufferService: func() Manifest { return &InterStepBufferService{} },
	KindServingPipeline:        func() Manifest { return &ServingPipeline{} },
}

// Manifest is one of *Pipeline, *Vertex, *MonoVertex, *InterStepBufferService, *ServingPipeline or *Other.
//
// +kubebuilder:object:generate=false
type Manifest interface {
	metav1.Object
	typeMeta() *metav1.TypeMeta
}

// Other is a document of a kind that is not ours, say a ConfigMap. It is kept as it was written, and never validated.
//
// +kubebuilder:object:generate=false
type Other struct {
	metav1.ObjectMeta
	// Type is not embedded, because code generators take what embeds both for a kind of this API.
	Type metav1.TypeMeta
	// JSON is the whole document.
	JSON []byte
}

func (p *Pipeline) typeMeta() *metav1.TypeMeta               { return &p.TypeMeta }
func (v *Vertex) typeMeta() *metav1.TypeMeta                 { return &v.TypeMeta }
func (m *MonoVertex) typeMeta() *metav1.TypeMeta             { return &m.TypeMeta }
func (s *InterStepBufferService) typeMeta() *metav1.TypeMeta { return &s.TypeMeta }
func (s *ServingPipeline) typeMeta() *metav1.TypeMeta        { return &s.TypeMeta }
func (o *Other) typeMeta() *metav1.TypeMeta                  { return &o.Type }

// Status is the part that the status of every kind starts with.
type Status struct {
	// Conditions say what was observed, one per aspect.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
