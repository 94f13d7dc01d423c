//go:build kubelet

package podwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/levada-io/levada/stream"
)

// TestRealKubelet lets real containers die, in a cluster that has the image levada.local/victim:1, as that of test/kube/cluster.sh:
// what a kubelet writes, and in which order, is nothing that a test can make up. It takes 20 minutes of CPU to build such a cluster,
// so the test has a build tag (go test -tags kubelet), and needs LEVADA_KUBECONFIG, the admin.kubeconfig of a running cluster.sh.
func TestRealKubelet(t *testing.T) {
	file := os.Getenv("LEVADA_KUBECONFIG")
	if file == "" {
		t.Fatal("no cluster: set LEVADA_KUBECONFIG to the admin.kubeconfig of a running test/kube/cluster.sh, and run the test in its namespaces")
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	pods := client.CoreV1().Pods("default")
	store := newLeases(time.Now)
	log := &lines{}
	var mu sync.Mutex
	deaths := map[string]Death{}
	w, err := New(pods, store, Options{Namespace: "default", Logger: slog.New(slog.NewTextHandler(log, nil)), OnDeath: func(d Death) {
		mu.Lock()
		defer mu.Unlock()
		deaths[d.Owner.Incarnation] = d
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("the watcher's log:\n%s", log)
		}
	})
	eventually := func(t *testing.T, what string, check func() error) {
		t.Helper()
		for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			err := check()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 90 s: %v", what, err)
			}
		}
	}
	// create makes a pod whose worker is the victim with these arguments, and waits until it runs; then its owner has a lease.
	create := func(t *testing.T, name string, policy corev1.RestartPolicy, args ...string) stream.Owner {
		t.Helper()
		grace := int64(20)
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{RestartPolicy: policy, TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{
			{Name: "worker", Image: "levada.local/victim:1", Args: args, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("48Mi")}}},
			{Name: "proxy", Image: "levada.local/victim:1", Args: []string{"0s", "wait"}},
		}}}
		pod, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			now := int64(0)
			_ = pods.Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{GracePeriodSeconds: &now}) // some are gone
		})
		eventually(t, name+" runs", func() error {
			pod, err := pods.Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if status, ok := containerStatus(pod, "worker"); !ok || status.State.Running == nil {
				return fmt.Errorf("its status is %+v", pod.Status)
			}
			return nil
		})
		owner := stream.Owner{Pod: name, PodUID: string(pod.UID), Container: "worker", Incarnation: "first of " + name}
		store.claim(name, owner)
		return owner
	}
	mustDie := func(t *testing.T, owner stream.Owner) Death {
		t.Helper()
		var d Death
		eventually(t, "the leases of "+owner.Incarnation+" end", func() error {
			mu.Lock()
			defer mu.Unlock()
			var dead bool
			if d, dead = deaths[owner.Incarnation]; !dead {
				return errors.New("no death is reported")
			}
			return nil
		})
		if !d.FinishedAt.IsZero() {
			t.Logf("found %v after the second in which it ended: %+v", time.Since(d.FinishedAt).Round(10*time.Millisecond), d)
		}
		return d
	}

	t.Run("killed for its memory, and restarted", func(t *testing.T) {
		owner := create(t, "oom", corev1.RestartPolicyAlways, "3s", "eat")
		if d := mustDie(t, owner); d.Reason != "OOMKilled" || d.ExitCode != 137 || d.Container != "worker" {
			t.Errorf("death %+v, want OOMKilled with 137", d)
		}
		var next stream.Owner
		eventually(t, "the next container runs", func() error {
			pod, err := pods.Get(t.Context(), "oom", metav1.GetOptions{})
			if err != nil {
				return err
			}
			status, _ := containerStatus(pod, "worker")
			if status.State.Running == nil || status.RestartCount == 0 {
				return fmt.Errorf("its status is %+v", status)
			}
			next = owner
			next.Incarnation = status.ContainerID
			return nil
		})
		store.claim("by the next", next)
		if d := mustDie(t, next); d.Reason != "OOMKilled" || d.Expired != 1 { // it eats, too
			t.Errorf("death of the next container %+v", d)
		} else if d.ContainerID != next.Incarnation {
			t.Errorf("the lease of container %s was ended for the end of %s", next.Incarnation, d.ContainerID)
		}
	})
	t.Run("ended, and not restarted", func(t *testing.T) {
		if d := mustDie(t, create(t, "exit", corev1.RestartPolicyNever, "2s", "exit", "42")); d.Cause != ContainerEnded || d.ExitCode != 42 {
			t.Errorf("death %+v, want exit code 42 of the container while the proxy keeps the pod running", d)
		}
	})
	t.Run("deleted, and drained", func(t *testing.T) {
		owner := create(t, "drain", corev1.RestartPolicyAlways, "3s", "wait")
		if err := pods.Delete(t.Context(), "drain", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if d := mustDie(t, owner); time.Since(began) < 2900*time.Millisecond {
			t.Errorf("its lease ended %v after the deletion, while it drained for 3 s: %+v", time.Since(began), d)
		}
	})
	t.Run("deleted by force", func(t *testing.T) {
		owner := create(t, "force", corev1.RestartPolicyAlways, "0s", "wait")
		now := int64(0)
		if err := pods.Delete(t.Context(), "force", metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		if d := mustDie(t, owner); d.Cause != PodGone {
			t.Errorf("death %+v, want %s", d, PodGone)
		}
	})
}
