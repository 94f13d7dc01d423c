package vertex

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/function"
)

func testEnv(t *testing.T) *Env {
	all := map[string]map[string]string{"ConfigMap/c": {"a": "1", "b": "2"}, "Secret/s": {"key": "hidden"}}
	e := &Env{Namespace: "ns", Pipeline: "pl", Meta: &metav1.ObjectMeta{Labels: map[string]string{"app": "x"}}, SocketRoot: t.TempDir(), Replica: Replica{Number: 2}, Listen: Listen{Address: "10.1.2.3"}}
	e.Values = func(kind, name string) (map[string]string, error) {
		if v, ok := all[kind+"/"+name]; ok {
			return v, nil
		}
		return nil, fmt.Errorf("there is no %s %s", kind, name)
	}
	e.Secret = func(name, key string) (string, error) { return all["Secret/"+name][key], nil }
	return e
}

// TestContainersMeanWhatKubernetesMakesOfThem: command and args, $(VAR), envFrom, references to ConfigMaps, Secrets and fields, and the replica and address of the
// process, which its caller knows.
func TestContainersMeanWhatKubernetesMakesOfThem(t *testing.T) {
	e := testEnv(t)
	c := &v1alpha1.Container{
		Command: []string{"prog", "$(P_a)"}, Args: []string{"--pod=$(POD)", "$$(POD)", "$(NONE)", "$"},
		EnvFrom: []corev1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
		Env: []corev1.EnvVar{
			{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "APP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
			{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "KEY", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "key"}}},
			{Name: "BOTH", Value: "$(P_a)-$(KEY)-$$(KEY)"},
		},
	}
	p, err := e.plan("fn", false, function.UDF, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"prog", "1", "--pod=pl-fn-2", "$(POD)", "$(NONE)", "$"}; !slices.Equal(p.command, want) {
		t.Errorf("command %q, want %q", p.command, want)
	}
	for name, want := range map[string]string{"P_b": "2", "APP": "x", "IP": "10.1.2.3", "NUMAFLOW_REPLICA": "2", "BOTH": "1-hidden-$(KEY)", "NUMAFLOW_NAMESPACE": "ns"} {
		if p.values[name] != want {
			t.Errorf("%s is %q, want %q", name, p.values[name], want)
		}
	}
}

// TestVolumesBecomeDirectories: the files of a ConfigMap, under the names that items give them.
func TestVolumesBecomeDirectories(t *testing.T) {
	if !function.CanMount() {
		if os.Getenv("CI") == "true" {
			t.Fatal("mount namespaces are not allowed here")
		}
		t.Skip("mount namespaces are not allowed here")
	}
	e := testEnv(t)
	c := &v1alpha1.Container{Command: []string{"prog"}, VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/etc/settings"}, {Name: "w", MountPath: "/scratch", SubPath: "in"}}}
	volumes := []corev1.Volume{
		{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}, Items: []corev1.KeyToPath{{Key: "a", Path: "x/y"}}}}},
		{Name: "w", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	p, err := e.plan("fn", false, function.UDF, c, volumes)
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := e.mounts("fn", p.mounts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(mounts[0].Source, "x", "y"))
	if string(b) != "1" || err != nil || !mounts[0].ReadOnly || mounts[0].Target != "/etc/settings" {
		t.Errorf("%+v: %q, %v", mounts[0], b, err)
	}
	if info, err := os.Stat(mounts[1].Source); err != nil || !info.IsDir() || mounts[1].ReadOnly || filepath.Base(mounts[1].Source) != "in" {
		t.Errorf("%+v: %v", mounts[1], err)
	}
}

func TestMain(m *testing.M) {
	function.Enter()
	os.Exit(m.Run())
}
