package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// AddToScheme makes the kinds known to a Kubernetes client.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&Pipeline{}, &PipelineList{}, &Vertex{}, &VertexList{}, &MonoVertex{}, &MonoVertexList{},
		&InterStepBufferService{}, &InterStepBufferServiceList{}, &ServingPipeline{}, &ServingPipelineList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
