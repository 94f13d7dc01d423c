//go:build linux

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/levada-io/levada/internal/kubeclient"
	"github.com/levada-io/levada/internal/kubeclient/kubeapi"
	"github.com/levada-io/levada/internal/proxy/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(collected{m}) }

// collected runs the garbage collector after the tests: client-go ends the goroutines of a transport when the transport is collected.
type collected struct{ *testing.M }

func (m collected) Run() int {
	code := m.M.Run()
	for range 3 { // cleanups run after a collection, and what they release goes with a later one
		runtime.GC()
	}
	return code
}

// cluster writes what the controllers of a cluster would.
type cluster struct {
	*testing.T
	kubernetes.Interface
}

func (c cluster) put(s *discoveryv1.EndpointSlice) {
	c.Helper()
	all := c.DiscoveryV1().EndpointSlices("shop")
	_, err := all.Update(c.Context(), s, metav1.UpdateOptions{})
	if err != nil {
		_, err = all.Create(c.Context(), s, metav1.CreateOptions{})
	}
	if err != nil {
		c.Fatal(err)
	}
}

func (c cluster) remove(name string) {
	c.Helper()
	if err := c.DiscoveryV1().EndpointSlices("shop").Delete(c.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
}

// service makes the Service orders with these ports, or changes it.
func (c cluster) service(ports ...corev1.ServicePort) {
	c.Helper()
	all := c.CoreV1().Services("shop")
	s, err := all.Get(c.Context(), "orders", metav1.GetOptions{})
	if err == nil {
		s.Spec.Ports = ports
		_, err = all.Update(c.Context(), s, metav1.UpdateOptions{})
	} else {
		_, err = all.Create(c.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: "shop"}, Spec: corev1.ServiceSpec{Ports: ports}}, metav1.CreateOptions{})
	}
	if err != nil {
		c.Fatal(err)
	}
}

// follow runs a source of the Service orders until the test ends. Each list it finds comes out of the channel.
func follow(t *testing.T, client clients, port string) (discovery.Source, <-chan []string) {
	t.Helper()
	source, err := discovery.New("kubernetes:///shop/orders:"+port, discovery.Options{
		Logger: slog.New(slog.DiscardHandler),
		Kubernetes: func(s discovery.Service, o discovery.Options) (discovery.Source, error) {
			return newSource(client, s, o), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	lists := make(chan []string, 1000)
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx, func(endpoints []string) { lists <- endpoints }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return source, lists
}

// until waits for a list. Others may come before: changes are collected, but not those that are made slowly.
func until(t *testing.T, lists <-chan []string, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.After(10 * time.Second); ; {
		select {
		case got = <-lists:
			if cmp.Equal(append([]string{}, want...), append([]string{}, got...)) {
				return
			}
		case <-deadline:
			t.Fatalf("%v did not come; the last list was %v", want, got)
		}
	}
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// fails waits for an error.
func fails(t *testing.T, source discovery.Source, what, want string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("the status is %+v, want the error %q", source.Status(), want)
		}
	}()
	eventually(t, what, func() bool { s := source.Status(); return s.Failing && strings.Contains(s.LastError.Error(), want) })
}

// scenario is what a Service goes through; the same for the fake and the real API server.
func scenario(t *testing.T, admin kubernetes.Interface, client clients) {
	const v4, v6 = discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6
	c := cluster{t, admin}
	other := slice("other", v4, endpoint("10.9.9.9", "ready"))
	other.Labels[discoveryv1.LabelServiceName] = "billing"
	c.put(other)

	byName, lists := follow(t, client, "grpc")
	byNumber, numberLists := follow(t, client, "80")
	until(t, lists)
	until(t, numberLists)
	fails(t, byName, "a Service without EndpointSlices is an error", "it has no EndpointSlices; does it exist")

	c.put(slice("orders-1", v4, ofPod("a", endpoint("10.0.0.1", "ready"))))
	until(t, lists, "10.0.0.1:9000")
	fails(t, byNumber, "a number without a Service is an error", "it does not exist; to use EndpointSlices without a Service, give the port by name")
	c.service(corev1.ServicePort{Name: "grpc", Port: 81})
	fails(t, byNumber, "a number that the Service does not have is an error", "it has no port 80; it has 81 (grpc)")
	c.service(corev1.ServicePort{Name: "grpc", Port: 80}, corev1.ServicePort{Name: "metrics", Port: 81})
	until(t, numberLists, "10.0.0.1:9000")
	eventually(t, "all is well", func() bool { return !byName.Status().Failing && !byNumber.Status().Failing })

	c.put(slice("orders-2", v6, ofPod("a", endpoint("2001:db8::1", "ready")), ofPod("b", endpoint("2001:db8::2", "ready"))))
	until(t, lists, "10.0.0.1:9000", "[2001:db8::2]:9000")
	until(t, numberLists, "10.0.0.1:9000", "[2001:db8::2]:9000")
	c.put(slice("orders-1", v4, ofPod("a", endpoint("10.0.0.1", "serving"))))
	until(t, lists, "[2001:db8::2]:9000")
	until(t, numberLists, "[2001:db8::2]:9000")
	c.put(slice("orders-2", v6, ofPod("b", endpoint("2001:db8::2", "serving"))))
	until(t, lists, "10.0.0.1:9000", "[2001:db8::2]:9000")
	until(t, numberLists, "10.0.0.1:9000", "[2001:db8::2]:9000")

	// The port is renamed in the Service first, and a moment later in its slices: the list is kept in between.
	c.service(corev1.ServicePort{Name: "h2c", Port: 80})
	fails(t, byNumber, "a port that no slice has is an error", `its EndpointSlices have no port "h2c"; they have grpc, metrics`)
	if byNumber.Status().Endpoints != 2 || len(numberLists) != 0 {
		t.Errorf("the list was not kept: %+v", byNumber.Status())
	}
	c.service(corev1.ServicePort{Name: "grpc", Port: 80})
	eventually(t, "all is well again", func() bool { return !byNumber.Status().Failing })

	c.remove("orders-2")
	until(t, lists, "10.0.0.1:9000")
	c.put(slice("orders-1", v4))
	until(t, lists)
	c.remove("orders-1")
	fails(t, byName, "there are no slices again", "no EndpointSlices")
}

// noWatchList is a client that sends lists as lists only, as a fake clientset does.
type noWatchList[L kuberuntime.Object] struct{ kubeclient.Lister[L] }

func (noWatchList[L]) IsWatchListSemanticsUnSupported() bool { return true }

func TestFakeServer(t *testing.T) {
	admin := fake.NewClientset()
	scenario(t, admin, clients{noWatchList[*discoveryv1.EndpointSliceList]{admin.DiscoveryV1().EndpointSlices("shop")}, noWatchList[*corev1.ServiceList]{admin.CoreV1().Services("shop")}})
}

// client is what the proxy itself would use.
func client(t *testing.T, config *rest.Config) clients {
	t.Helper()
	c, err := newClients(config, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// unreachable makes all requests fail while it is set, and those that are answered now end.
type unreachable struct {
	atomic.Bool
	next http.RoundTripper
}

func (u *unreachable) RoundTrip(r *http.Request) (*http.Response, error) {
	if u.Load() {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	answer, err := u.next.RoundTrip(r)
	if err == nil {
		answer.Body = &cut{answer.Body, u}
	}
	return answer, err
}

type cut struct {
	io.ReadCloser
	by *unreachable
}

func (c *cut) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if c.by.Load() {
		return 0, syscall.ECONNRESET
	}
	return n, err
}

func TestRealServer(t *testing.T) {
	server := kubeapi.Start(t, "shop")
	t.Run("scenario", func(t *testing.T) { scenario(t, server.Admin, client(t, server.Config("admin", "system:masters"))) })

	t.Run("rights", func(t *testing.T) {
		c := cluster{t, server.Admin}
		c.put(slice("orders-1", discoveryv1.AddressTypeIPv4, endpoint("10.0.0.1", "ready")))
		defer c.remove("orders-1")
		source, lists := follow(t, client(t, server.Config("proxy")), "grpc")
		fails(t, source, "it may not watch", "watch endpointslices of namespace shop: endpointslices.discovery.k8s.io is forbidden")
		may := func(group, resource string, names ...string) {
			t.Helper()
			role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: resource}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{group}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{"list", "watch"}}}}
			if _, err := c.RbacV1().Roles("shop").Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: resource}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: resource},
				Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "proxy"}}}
			if _, err := c.RbacV1().RoleBindings("shop").Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		may("discovery.k8s.io", "endpointslices")
		until(t, lists, "10.0.0.1:9000")
		eventually(t, "all is well", func() bool { return !source.Status().Failing })

		// By number it also needs the Services, and the error names them.
		source, lists = follow(t, client(t, server.Config("proxy")), "80")
		fails(t, source, "it may not watch services", `watch services of namespace shop: services "orders" is forbidden`)
		may("", "services", "orders")
		until(t, lists, "10.0.0.1:9000")
	})

	t.Run("outage", func(t *testing.T) {
		c := cluster{t, server.Admin}
		c.put(slice("orders-1", discoveryv1.AddressTypeIPv4, endpoint("10.0.0.1", "ready")))
		defer c.remove("orders-1")
		config := server.Config("admin", "system:masters")
		outage := &unreachable{}
		config.Wrap(func(next http.RoundTripper) http.RoundTripper { outage.next = next; return outage })
		source, lists := follow(t, client(t, config), "grpc")
		until(t, lists, "10.0.0.1:9000")
		outage.Store(true)
		c.put(slice("orders-1", discoveryv1.AddressTypeIPv4, endpoint("10.0.0.2", "ready"))) // also wakes the watch that is cut
		fails(t, source, "an API server that cannot be reached is an error", "connection refused")
		if source.Status().Endpoints != 1 || len(lists) != 0 {
			t.Error("the list was not kept")
		}
		outage.Store(false)
		until(t, lists, "10.0.0.2:9000")
		eventually(t, "all is well again", func() bool { return !source.Status().Failing })
	})

	// The set changes every 100 ms: what was removed is gone within a second.
	t.Run("changes", func(t *testing.T) {
		c := cluster{t, server.Admin}
		_, lists := follow(t, client(t, server.Config("admin", "system:masters")), "grpc")
		defer c.remove("orders-1")
		var since [31]time.Time
		last := 0
		read := func() {
			for len(lists) > 0 {
				if list := <-lists; len(list) == 1 {
					if _, err := fmt.Sscanf(list[0], "10.0.0.%d:9000", &last); err != nil {
						t.Fatalf("%v is no list that was there", list)
					}
				}
			}
		}
		for i := 1; i < len(since); i++ {
			since[i] = time.Now()
			c.put(slice("orders-1", discoveryv1.AddressTypeIPv4, endpoint(fmt.Sprintf("10.0.0.%d", i), "ready")))
			time.Sleep(100 * time.Millisecond)
			stalled := time.Since(since[i]) > 500*time.Millisecond // this machine, which has other things to do
			read()
			if !stalled && last < i && time.Since(since[last+1]) > time.Second {
				t.Errorf("10.0.0.%d is still there, removed %v ago", last, time.Since(since[last+1]))
			}
		}
		eventually(t, "the last list arrives", func() bool { read(); return last == len(since)-1 })
		if late := time.Since(since[last]); late > time.Second {
			t.Errorf("the last list came after %v", late)
		}
	})
}

func TestWithoutACluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	_, err := discovery.New("kubernetes:///shop/orders:grpc", discovery.Options{Kubernetes: New})
	if err == nil || !strings.Contains(err.Error(), "no configuration of a Kubernetes cluster was found; run in a pod with a service account, or set KUBECONFIG") {
		t.Error(err)
	}
	if errors.Unwrap(err) == nil {
		t.Error("the cause is not kept")
	}
}
