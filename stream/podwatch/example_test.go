package podwatch

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// example reads the documents of examples/streams/podwatch.yaml, by kind and, for a Deployment, its name.
func example(t *testing.T) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "streams", "podwatch.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	documents := map[string][]byte{}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var head struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
		}
		if err := yaml.Unmarshal(document, &head); err != nil {
			t.Fatal(err)
		}
		key := head.Kind
		if key == "Deployment" {
			key += " " + head.Name
		}
		if documents[key] != nil {
			t.Fatalf("the example has two of %s", key)
		}
		documents[key] = document
	}
	return documents
}

func TestExample(t *testing.T) {
	documents := example(t)
	read := func(key string, into any) {
		t.Helper()
		if err := yaml.UnmarshalStrict(documents[key], into); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	var account corev1.ServiceAccount
	var role rbacv1.Role
	var binding rbacv1.RoleBinding
	var watcher, workers appsv1.Deployment
	read("ServiceAccount", &account)
	read("Role", &role)
	read("RoleBinding", &binding)
	read("Deployment levada-watch", &watcher)
	read("Deployment orders-worker", &workers)

	if len(role.Rules) != 1 || !slices.Equal(role.Rules[0].Resources, []string{"pods"}) || !slices.Equal(role.Rules[0].Verbs, []string{"get", "list", "watch"}) {
		t.Errorf("the role gives %+v, want get, list and watch for pods and nothing else", role.Rules)
	}
	if binding.RoleRef.Name != role.Name || len(binding.Subjects) != 1 || binding.Subjects[0].Name != account.Name || watcher.Spec.Template.Spec.ServiceAccountName != account.Name {
		t.Error("the watcher does not run with the role")
	}
	container := workers.Spec.Template.Spec.Containers[0]
	env := map[string]string{}
	for _, e := range container.Env {
		env[e.Name] = e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			env[e.Name] = e.ValueFrom.FieldRef.FieldPath
		}
	}
	for name, want := range map[string]string{"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "CONTAINER_NAME": container.Name} {
		if env[name] != want {
			t.Errorf("the worker's %s is %q, want %q", name, env[name], want)
		}
	}
}
