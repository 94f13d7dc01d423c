package v1alpha1_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/levada-io/levada/api/v1alpha1"
)

func TestAddToScheme(t *testing.T) {
	s := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"Pipeline", "Vertex", "MonoVertex", "InterStepBufferService", "ServingPipeline"} {
		for _, k := range []string{kind, kind + "List"} {
			if !s.Recognizes(v1alpha1.GroupVersion.WithKind(k)) {
				t.Errorf("no %s", k)
			}
		}
	}
}
