// Package v1alpha1 holds what a user writes: the five kinds of numaflow.numaproj.io/v1alpha1, with what Levada adds to them.
//
// A manifest goes through four steps, each its own function, and only SetDefaults changes it:
//
//	objects, problems := v1alpha1.Decode("pipeline.yaml", data) // strict, as the Kubernetes API server reads it
//	problems = append(problems, v1alpha1.Validate(objects)...)  // looks, never changes
//	for _, o := range objects {
//		v1alpha1.SetDefaults(o.Manifest)
//	}
//
// Every problem carries a stable code (see Catalogue), the field's path, and its line and column in the file.
//
// # What Levada adds
//
// Fields that Numaflow does not have are marked "Levada:" in their comment. A manifest that uses none of them runs on both.
// What has no place in a field, because it concerns one laptop rather than the pipeline, is an annotation (see annotations.go).
//
// +kubebuilder:object:generate=true
// +groupName=numaflow.numaproj.io
package v1alpha1
