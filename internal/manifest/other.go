package manifest

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/levada-io/levada/api/v1alpha1"
)

// kinds makes an empty manifest of each kind. It is the one list of kinds that decoding knows.
var kinds = map[string]func() v1alpha1.Manifest{
	v1alpha1.KindPipeline:               func() v1alpha1.Manifest { return &v1alpha1.Pipeline{} },
	v1alpha1.KindVertex:                 func() v1alpha1.Manifest { return &v1alpha1.Vertex{} },
	v1alpha1.KindMonoVertex:             func() v1alpha1.Manifest { return &v1alpha1.MonoVertex{} },
	v1alpha1.KindInterStepBufferService: func() v1alpha1.Manifest { return &v1alpha1.InterStepBufferService{} },
	v1alpha1.KindServingPipeline:        func() v1alpha1.Manifest { return &v1alpha1.ServingPipeline{} },
}

// Other is a document of a kind that is not ours, say a ConfigMap. It is kept as it was written, and never validated.
type Other struct {
	metav1.ObjectMeta
	Type metav1.TypeMeta
	// JSON is the whole document.
	JSON []byte
}

// GetObjectKind gives apiVersion and kind.
func (o *Other) GetObjectKind() schema.ObjectKind { return &o.Type }
