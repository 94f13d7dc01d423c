// Package v1alpha1 holds what a user writes: the five kinds of numaflow.numaproj.io/v1alpha1, with what Levada adds to them.
//
// The types are decoded and validated by package manifest (internal/manifest). SetDefaults is the only function that changes a manifest.
//
// # What Levada adds
//
// Fields that Numaflow does not have are marked "Levada:" in their comment. A manifest that uses none of them runs on both.
// What has no place in a field, because it concerns one laptop rather than the pipeline, is an annotation (see annotations.go).
//
// +kubebuilder:object:generate=true
// +groupName=numaflow.numaproj.io
package v1alpha1
