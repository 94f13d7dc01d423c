package standalone

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/levada-io/levada/api/v1alpha1"
)

// secrets are those of the manifests, and of a directory with a file for each value.
type secrets struct {
	dir    string
	values map[string]map[string]string
}

func newSecrets(cfg Config) secrets {
	s := secrets{dir: cfg.SecretDir, values: map[string]map[string]string{}}
	for _, o := range cfg.Objects {
		other, ok := o.Manifest.(*v1alpha1.Other)
		if !ok || other.Type.Kind != "Secret" {
			continue
		}
		var secret corev1.Secret
		if json.Unmarshal(other.JSON, &secret) != nil {
			continue
		}
		values := map[string]string{}
		for k, v := range secret.Data {
			values[k] = string(v)
		}
		for k, v := range secret.StringData {
			values[k] = v
		}
		s.values[secret.Name] = values
	}
	return s
}

func (s secrets) get(name, key string) (string, error) {
	if v, ok := s.values[name][key]; ok {
		return v, nil
	}
	if s.dir != "" {
		b, err := os.ReadFile(filepath.Join(s.dir, filepath.Base(name), filepath.Base(key)))
		if err == nil {
			return strings.TrimRight(string(b), "\n"), nil
		}
	}
	return "", fmt.Errorf("secret %s has no key %s: add the Secret to the manifests, or a file %s/%s below --secret-dir", name, key, name, key)
}
