package standalone

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/levada-io/levada/internal/manifest"
)

// secrets are those of the manifests, and of a directory with a file for each value.
type secrets struct {
	dir     string
	values  map[string]map[string]string
	configs map[string]map[string]string // ConfigMaps
}

func newSecrets(cfg Config) secrets {
	s := secrets{dir: cfg.SecretDir, values: map[string]map[string]string{}, configs: map[string]map[string]string{}}
	for _, o := range cfg.Objects {
		other, ok := o.Manifest.(*manifest.Other)
		if !ok {
			continue
		}
		switch other.Type.Kind {
		case "ConfigMap":
			var c corev1.ConfigMap
			if json.Unmarshal(other.JSON, &c) == nil {
				s.configs[c.Name] = entries(c.BinaryData, c.Data)
			}
		case "Secret":
			var c corev1.Secret
			if json.Unmarshal(other.JSON, &c) == nil {
				s.values[c.Name] = entries(c.Data, c.StringData)
			}
		}
	}
	return s
}

// entries are the values of a ConfigMap or Secret. Text goes before bytes of the same key.
func entries(data map[string][]byte, text map[string]string) map[string]string {
	values := map[string]string{}
	for k, v := range data {
		values[k] = string(v)
	}
	maps.Copy(values, text)
	return values
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

// all returns every value of a ConfigMap or a Secret.
func (s secrets) all(kind, name string) (map[string]string, error) {
	if kind == "ConfigMap" {
		if values, ok := s.configs[name]; ok {
			return values, nil
		}
		return nil, fmt.Errorf("there is no ConfigMap %s: add it to the manifests", name)
	}
	values, found := map[string]string{}, false
	if s.dir != "" {
		dir := filepath.Join(s.dir, filepath.Base(name))
		entries, err := os.ReadDir(dir)
		found = err == nil
		for _, e := range entries {
			if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
				values[e.Name()] = strings.TrimRight(string(b), "\n")
			}
		}
	}
	if of, ok := s.values[name]; ok {
		maps.Copy(values, of)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("there is no Secret %s: add it to the manifests, or a directory %s below --secret-dir", name, name)
	}
	return values, nil
}
