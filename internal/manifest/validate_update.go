package manifest

import (
	"cmp"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/levada-io/levada/api/v1alpha1"
)

// AnnotationInstance says which of several operators looks after an object. It cannot change.
const AnnotationInstance = "numaflow.numaproj.io/instance"

// ValidateUpdate reports changes that cannot be made to a running object. It looks at nothing else: Validate the new one too.
func ValidateUpdate(old, updated Object) Problems {
	r := &report{object: updated}
	if old.kind() != updated.kind() {
		r.add("kind", Problem{Code: CodeImmutable, Message: fmt.Sprintf("a %s cannot become a %s", old.kind(), updated.kind())})
		return r.problems
	}
	immutable(r, path("metadata.annotations").key(AnnotationInstance), CodeImmutableInstance,
		old.Manifest.GetAnnotations()[AnnotationInstance], updated.Manifest.GetAnnotations()[AnnotationInstance])
	switch before := old.Manifest.(type) {
	case *v1alpha1.Pipeline:
		pipelineUpdate(r, &before.Spec, &updated.Manifest.(*v1alpha1.Pipeline).Spec, "spec")
	case *v1alpha1.ServingPipeline:
		pipelineUpdate(r, &before.Spec.Pipeline, &updated.Manifest.(*v1alpha1.ServingPipeline).Spec.Pipeline, "spec.pipeline")
	case *v1alpha1.InterStepBufferService:
		bufferServiceUpdate(r, &before.Spec, &updated.Manifest.(*v1alpha1.InterStepBufferService).Spec)
	}
	r.problems.Sort()
	return r.problems
}

func immutable[V comparable](r *report, at path, code Code, before, after V) {
	if before != after {
		r.add(at, Problem{
			Code: code, Message: fmt.Sprintf("%s cannot change from %s to %s", at.last(), quote(fmt.Sprint(before)), quote(fmt.Sprint(after))),
			Hint: "delete the object and create it again, once it is drained",
		})
	}
}

func pipelineUpdate(r *report, before, after *v1alpha1.PipelineSpec, at path) {
	immutable(r, at.at("interStepBufferServiceName"), CodeImmutable,
		cmp.Or(before.InterStepBufferServiceName, v1alpha1.DefaultISBName), cmp.Or(after.InterStepBufferServiceName, v1alpha1.DefaultISBName))
	old := make(map[string]*v1alpha1.AbstractVertex, len(before.Vertices))
	for i := range before.Vertices {
		old[before.Vertices[i].Name] = &before.Vertices[i]
	}
	for i := range after.Vertices {
		if was, ok := old[after.Vertices[i].Name]; ok {
			vertexUpdate(r, was, &after.Vertices[i], at.at("vertices").item(i))
		}
	}
}

func vertexUpdate(r *report, before, after *v1alpha1.AbstractVertex, at path) {
	if before.Type() != after.Type() {
		r.add(at.at("name"), Problem{
			Code: CodeImmutableVertex, Message: fmt.Sprintf("vertex %q cannot become a %s, it is a %s", after.Name, after.Type(), before.Type()),
			Hint: "give the new vertex a new name",
		})
		return
	}
	if !after.IsReduce() {
		return
	}
	if a, b := before.PartitionCount(), after.PartitionCount(); a != b {
		r.add(at.at("partitions"), Problem{
			Code: CodeImmutableReduce, Message: fmt.Sprintf("the partitions of reduce %q cannot change from %d to %d", after.Name, a, b),
			Hint: "keys would move to other partitions than their open windows; give the vertex a new name",
		})
	}
	if !equality.Semantic.DeepEqual(storageWithDefaults(before), storageWithDefaults(after)) {
		r.add(at.at("udf.groupBy.storage"), Problem{
			Code: CodeImmutableReduce, Message: fmt.Sprintf("the storage of reduce %q cannot change", after.Name),
			Hint: "open windows are in it; give the vertex a new name",
		})
	}
}

func storageWithDefaults(v *v1alpha1.AbstractVertex) *v1alpha1.PBQStorage {
	s := v.UDF.GroupBy.Storage
	if s == nil || s.PersistentVolumeClaim == nil {
		return s
	}
	claim := *s.PersistentVolumeClaim
	v1alpha1.SetPersistenceDefaults(&claim)
	return &v1alpha1.PBQStorage{PersistentVolumeClaim: &claim}
}

func bufferServiceUpdate(r *report, before, after *v1alpha1.InterStepBufferServiceSpec) {
	if (before.JetStream == nil) != (after.JetStream == nil) || (before.Redis == nil) != (after.Redis == nil) {
		r.add("spec", Problem{Code: CodeImmutableISB, Message: "the type of a buffer service cannot change"})
		return
	}
	if before.JetStream == nil {
		return
	}
	a, b := before.JetStream.Persistence, after.JetStream.Persistence
	if a != nil && b != nil {
		x, y := *a, *b
		v1alpha1.SetPersistenceDefaults(&x)
		v1alpha1.SetPersistenceDefaults(&y)
		a, b = &x, &y
	}
	if !equality.Semantic.DeepEqual(a, b) {
		r.add("spec.jetstream.persistence", Problem{Code: CodeImmutableISB, Message: "the persistence of a buffer service cannot change", Hint: "make another buffer service and move the pipelines to it"})
	}
}
