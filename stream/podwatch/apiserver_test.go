package podwatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/levada-io/levada/internal/kubeclient/kubeapi"
	"github.com/levada-io/levada/stream"
)

// controlPlane is an API server with subtests.
type controlPlane struct{ *kubeapi.Server }

func startControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	return &controlPlane{kubeapi.Start(t, "orders", "billing")}
}

// sub runs a subtest that uses the control plane.
func (c *controlPlane) sub(name string, f func(t *testing.T)) {
	c.T.Run(name, func(t *testing.T) {
		outer := c.T
		c.T = t
		defer func() { c.T = outer }()
		f(t)
	})
}

// requests notes what a client asks, and what it is answered.
type requests struct {
	mu      sync.Mutex
	lists   int // complete lists, in whichever form
	expired int // watches that were refused since their position is too old
	blocked bool
}

// block makes all requests fail, and those that are answered now end, as if the server could not be reached.
func (r *requests) block(blocked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked = blocked
}

func (r *requests) isBlocked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blocked
}

func (r *requests) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(request *http.Request) (*http.Response, error) {
		if r.isBlocked() {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED} // then client-go asks for the same position again
		}
		answer, err := next.RoundTrip(request)
		query := request.URL.Query()
		complete := query.Get("watch") == "" || query.Get("sendInitialEvents") == "true"
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil && answer.StatusCode == http.StatusOK && complete && strings.HasSuffix(request.URL.Path, "/pods") {
			r.lists++
		}
		if err == nil && query.Get("watch") != "" {
			if answer.StatusCode == http.StatusGone {
				r.expired++
			}
			answer.Body = &expiryReader{ReadCloser: answer.Body, blocked: r.isBlocked, found: func() { r.mu.Lock(); r.expired++; r.mu.Unlock() }}
		}
		return answer, err
	})
}

func (r *requests) count() (lists, expired int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lists, r.expired
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// expiryReader looks for the event that says that a position is too old, in JSON or protobuf.
type expiryReader struct {
	io.ReadCloser
	found   func()
	blocked func() bool
}

func (r *expiryReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.blocked() {
		return 0, syscall.ECONNRESET
	}
	if bytes.Contains(p[:n], []byte("too old resource version")) {
		r.found()
	}
	return n, err
}

// kubelet plays the one of node-1: it writes what containers do into the status of pods.
type kubelet struct {
	*controlPlane
	namespace string
}

func (k kubelet) create(name string) stream.Owner {
	k.T.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: k.namespace, Labels: map[string]string{"app": "orders"}}}
	pod.Spec.NodeName = "node-1"
	pod.Spec.Containers = []corev1.Container{{Name: "worker", Image: "orders:1"}, {Name: "proxy", Image: "proxy:1"}}
	pod, err := k.Admin.CoreV1().Pods(k.namespace).Create(k.T.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		k.T.Fatal(err)
	}
	k.update(name, func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		proxy := running("containerd://proxy-"+name, 0, time.Now())
		proxy.Name = "proxy"
		p.Status.ContainerStatuses = []corev1.ContainerStatus{running("containerd://1-"+name, 0, time.Now()), proxy}
	})
	return stream.Owner{Pod: name, PodUID: string(pod.UID), Container: "worker", Incarnation: "1 of " + name + " " + string(pod.UID)}
}

func (k kubelet) update(name string, change func(*corev1.Pod)) {
	k.T.Helper()
	pods := k.Admin.CoreV1().Pods(k.namespace)
	pod, err := pods.Get(k.T.Context(), name, metav1.GetOptions{})
	if err != nil {
		k.T.Fatal(err)
	}
	change(pod)
	if _, err := pods.UpdateStatus(k.T.Context(), pod, metav1.UpdateOptions{}); err != nil {
		k.T.Fatal(err)
	}
}

func (k kubelet) status(name string, status corev1.ContainerStatus) {
	k.T.Helper()
	k.update(name, func(p *corev1.Pod) { p.Status.ContainerStatuses[0] = status })
}

func (k kubelet) remove(name string, grace int64) {
	k.T.Helper()
	if err := k.Admin.CoreV1().Pods(k.namespace).Delete(k.T.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		k.T.Fatal(err)
	}
}

// TestRealAPIServer runs everything against one API server: subtests have pods of their own, and run one after the other since some
// of them kill it.
func TestRealAPIServer(t *testing.T) {
	c := startControlPlane(t)
	k := kubelet{c, "orders"}
	store := newLeases(time.Now)
	id := func(name string, n int) string { return fmt.Sprintf("containerd://%d-%s", n, name) }

	// The watcher has no right but those of the example's role.
	const account = "system:serviceaccount:orders:levada-watch"
	applyExample(t, c.Admin, "orders")
	asked := &requests{}
	config := c.Config(account)
	config.Wrap(asked.wrap)
	client, err := NewPods(config, "orders")
	if err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	var mu sync.Mutex
	var deaths []EndedOwner
	options := Options{Namespace: "orders", Selector: "app=orders", Logger: slog.New(slog.NewTextHandler(log, nil)), OnEnded: func(d EndedOwner) {
		mu.Lock()
		defer mu.Unlock()
		deaths = append(deaths, d)
	}}
	died := func(owner stream.Owner) (EndedOwner, bool) {
		mu.Lock()
		defer mu.Unlock()
		for _, d := range deaths {
			if d.Owner == owner {
				return d, true
			}
		}
		return EndedOwner{}, false
	}
	var stop func()
	var w *Watcher
	launch := func() {
		var err error
		if w, err = New(client, store, options); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func(w *Watcher) { done <- w.Run(ctx) }(w)
		stop = sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	launch()
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("the watcher's log:\n%s", log)
		}
	})

	// Whatever happens to the others, this one's lease is never ended.
	survivor := k.create("survivor")
	store.claim("survivor", survivor)
	mustDie := func(owner stream.Owner, limit time.Duration) EndedOwner {
		c.T.Helper()
		var d EndedOwner
		c.Eventually("the leases of "+owner.Incarnation+" end", limit, func() error {
			var ok bool
			if d, ok = died(owner); !ok {
				return fmt.Errorf("no death is reported; health: %v", w.Health())
			}
			return nil
		})
		if _, ok := died(survivor); ok {
			c.T.Fatal("the survivor counts as dead")
		}
		return d
	}
	within := 5 * time.Second

	c.sub("an end of each kind", func(t *testing.T) {
		for _, test := range []struct {
			name   string
			happen func(name string)
			cause  Cause
			reason string
		}{
			{"oom-killed", func(name string) { k.status(name, terminated(oom(id(name, 1), time.Now().Add(time.Second)), 0)) }, ContainerEnded, "OOMKilled"},
			{"in-backoff", func(name string) {
				k.status(name, after(waiting("CrashLoopBackOff", 1), oom(id(name, 1), time.Now().Add(time.Second))))
			}, ContainerEnded, "OOMKilled"},
			{"restarted", func(name string) {
				k.status(name, after(running(id(name, 2), 1, time.Now().Add(2*time.Second)), oom(id(name, 1), time.Now().Add(time.Second))))
			}, ContainerReplaced, "OOMKilled"},
			{"failed", func(name string) { k.update(name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }) }, PodEnded, "Failed"},
			{"succeeded", func(name string) { k.update(name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }) }, PodEnded, "Succeeded"},
			{"evicted", func(name string) {
				k.update(name, func(p *corev1.Pod) {
					disrupted(p)
					p.Status.Phase, p.Status.Reason = corev1.PodFailed, "Evicted"
				})
			}, PodEnded, "Evicted"},
			{"deleted-by-force", func(name string) { k.remove(name, 0) }, PodGone, "Deleted"},
		} {
			c.sub(test.name, func(t *testing.T) {
				owner := k.create(test.name)
				store.claim(test.name, owner)
				began := time.Now()
				test.happen(test.name)
				d := mustDie(owner, within)
				t.Logf("found after %v", time.Since(began).Round(time.Millisecond))
				if d.Cause != test.cause || d.Reason != test.reason || d.Expired != 1 || d.Node != "node-1" || d.Namespace != "orders" {
					t.Errorf("death %+v, want cause %s and reason %s", d, test.cause, test.reason)
				}
			})
		}
	})

	c.sub("deleted with grace", func(t *testing.T) {
		owner := k.create("drained")
		store.claim("drained", owner)
		k.remove("drained", 30)
		c.Eventually("the watcher has seen that it is being deleted", within, func() error {
			if !strings.Contains(log.String(), "pod=drained") {
				return errors.New("nothing is logged")
			}
			return nil
		})
		if _, dead := died(owner); dead {
			t.Error("its leases were ended while it drains")
		}
		k.remove("drained", 0) // the kubelet's last word
		mustDie(owner, within)
	})

	c.sub("replaced by another of its name while nobody watches", func(t *testing.T) {
		owner := k.create("stateful-0")
		store.claim("stateful-0", owner)
		stop()
		k.remove("stateful-0", 0)
		next := k.create("stateful-0")
		store.claim("of the next", next)
		launch()
		mustDie(owner, within)
		if _, dead := died(next); dead {
			t.Error("the new pod counts as dead")
		}
	})

	c.sub("deaths while the watcher is down", func(t *testing.T) {
		gone, killed, failed := k.create("gone"), k.create("killed"), k.create("failed-2")
		store.claim("gone", gone)
		store.claim("killed", killed)
		store.claim("failed-2", failed)
		stop()
		k.remove("gone", 0)
		k.status("killed", after(running(id("killed", 2), 1, time.Now().Add(2*time.Second)), oom(id("killed", 1), time.Now().Add(time.Second))))
		k.update("failed-2", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
		launch()
		for _, owner := range []stream.Owner{gone, killed, failed} {
			mustDie(owner, within)
		}
	})

	c.sub("the labels do not match any more", func(t *testing.T) {
		owner := k.create("relabelled")
		store.claim("relabelled", owner)
		pods := c.Admin.CoreV1().Pods("orders")
		if _, err := pods.Patch(t.Context(), "relabelled", types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"other"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		// Events come in order, so when the end of this one is found, the other was looked at.
		marker := k.create("marker")
		store.claim("marker", marker)
		k.remove("marker", 0)
		mustDie(marker, within)
		if _, dead := died(owner); dead {
			t.Error("a living pod counts as dead")
		}
	})

	c.sub("other namespaces", func(t *testing.T) {
		client := c.Client(config)
		if _, err := client.CoreV1().Pods("billing").List(t.Context(), metav1.ListOptions{}); err == nil {
			t.Error("the example's role allows to list the pods of another namespace")
		}
		if _, err := client.CoreV1().Secrets("orders").List(t.Context(), metav1.ListOptions{}); err == nil {
			t.Error("the example's role allows to list secrets")
		}
	})

	c.sub("the API server is killed", func(t *testing.T) {
		first, second := k.create("before"), k.create("behind")
		store.claim("before", first)
		store.claim("behind", second)
		k.remove("before", 0)
		mustDie(first, within)
		c.StopServer()
		c.Eventually("the watcher notices", 60*time.Second, func() error {
			if w.Health() == nil {
				return errors.New("its health is good")
			}
			return nil
		})
		c.StartServer()
		k.remove("behind", 0)
		mustDie(second, 60*time.Second)
		c.Eventually("the watcher is well again", 60*time.Second, w.Health)
	})

	c.sub("the position of the watch is compacted", func(t *testing.T) {
		stop()
		launch() // client-go would remember the failures above, and wait longer
		owner := k.create("forgotten")
		store.claim("forgotten", owner)
		marker := k.create("marker-2")
		store.claim("marker-2", marker)
		k.remove("marker-2", 0)
		mustDie(marker, within)
		lists, expired := asked.count()
		// While the server does not answer the watcher alone, the pod ends and etcd forgets it; then a new server knows nothing of before.
		asked.block(true)
		k.remove("forgotten", 0)
		for i := range 20 {
			k.update("survivor", func(p *corev1.Pod) { p.Status.Message = fmt.Sprint(i) })
		}
		c.Compact()
		c.StopServer()
		c.StartServer()
		asked.block(false)
		mustDie(owner, 60*time.Second)
		l, e := asked.count()
		t.Logf("%d complete lists, %d positions refused as too old", l-lists, e-expired)
		if l == lists || e == expired {
			t.Error("the watch went on as if nothing was missed: this does not test what it should")
		}
	})

	c.sub("nobody else", func(t *testing.T) {
		if _, dead := died(survivor); dead {
			t.Error("the survivor counts as dead")
		}
	})
}

// lines is a log that may be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// applyExample makes the role and its binding of the example.
func applyExample(t *testing.T, admin kubernetes.Interface, namespace string) {
	t.Helper()
	found := 0
	for kind, document := range example(t) {
		switch kind {
		case "Role":
			var role rbacv1.Role
			if err := yaml.UnmarshalStrict(document, &role); err != nil {
				t.Fatal(err)
			}
			if _, err := admin.RbacV1().Roles(namespace).Create(t.Context(), &role, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			found++
		case "RoleBinding":
			var binding rbacv1.RoleBinding
			if err := yaml.UnmarshalStrict(document, &binding); err != nil {
				t.Fatal(err)
			}
			for i := range binding.Subjects {
				binding.Subjects[i].Namespace = namespace
			}
			if _, err := admin.RbacV1().RoleBindings(namespace).Create(t.Context(), &binding, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			found++
		}
	}
	if found != 2 {
		t.Fatalf("the example has %d roles and bindings, want one of each", found)
	}
}
