package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"

	kyaml "sigs.k8s.io/yaml"

	"github.com/levada-io/levada/api/v1alpha1"
)

// Render writes manifests as YAML documents, in the order given and with sorted fields, so that equal manifests give equal
// text. It writes what is there: call SetDefaults before to see the defaults too.
func Render(objects []Object) ([]byte, error) {
	var out bytes.Buffer
	for i, o := range objects {
		text, err := renderOne(o)
		if err != nil {
			return nil, fmt.Errorf("render %s %s: %w", o.kind(), o.Manifest.GetName(), err)
		}
		if i > 0 {
			out.WriteString("---\n")
		}
		out.Write(text)
	}
	return out.Bytes(), nil
}

func renderOne(o Object) ([]byte, error) {
	if other, ok := o.Manifest.(*Other); ok {
		return kyaml.JSONToYAML(other.JSON)
	}
	if meta := o.Manifest.GetObjectKind(); meta.GroupVersionKind().Kind == "" { // made in memory
		meta.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(o.kind()))
	}
	text, err := json.Marshal(o.Manifest)
	if err != nil {
		return nil, err
	}
	return kyaml.JSONToYAML(text)
}
