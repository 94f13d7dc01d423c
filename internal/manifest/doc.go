// Package manifest reads manifests of numaflow.numaproj.io/v1alpha1 and reports what is wrong with them.
//
// A manifest goes through three steps, each its own function, and only SetDefaults changes it:
//
//	objects, problems := manifest.Decode("pipeline.yaml", data) // strict, as the Kubernetes API server reads it
//	problems = append(problems, manifest.Validate(objects)...)  // looks, never changes
//	for _, o := range objects {
//		v1alpha1.SetDefaults(o.Manifest)
//	}
//
// Every problem carries a stable code (see Catalogue), the field's path, and its line and column in the file.
//
// # Files
//
// One folder, because all checks add to one report and name problems of one catalogue. catalogue.go is long because it is data: an entry for each code.
// The files follow the steps: decode.go reads documents, with syntax.go for text that is not YAML, bounds.go for text that is too large, typecheck.go for values
// of the wrong type and locator.go for the places of fields; validate.go and validate_*.go check one object or all of them; gaps.go lists what this version of
// the engine does not run; problem.go, codes.go and catalogue.go are what is reported.
package manifest
