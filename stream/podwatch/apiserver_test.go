package podwatch

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/levada-io/levada/stream"
)

// controlPlane is a real etcd and kube-apiserver, without any controller, scheduler or node: the test plays the kubelet.
type controlPlane struct {
	t      *testing.T // that of the present subtest
	root   *testing.T // that whose end is the end of the processes
	bin    string
	dir    string
	etcd   string // URL
	port   string // of the API server
	ca     *authority
	server *exec.Cmd
	admin  kubernetes.Interface
}

// binaries builds etcd and kube-apiserver, or finds them built. The build takes minutes, so it has to be asked for.
func binaries(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("a real API server takes some seconds: left out with -short")
	}
	if runtime.GOOS != "linux" {
		t.Skip("the API server is only built for and run on Linux")
	}
	build := exec.CommandContext(t.Context(), filepath.Join("..", "..", "test", "kube", "build.sh"), "-", "controlplane")
	if os.Getenv("CI") != "true" && os.Getenv("LEVADA_KUBE") != "1" {
		build.Env = append(os.Environ(), "LEVADA_KUBE_FIND=1") // fails with 3 when nothing is built
	}
	var stderr bytes.Buffer
	build.Stderr = &stderr
	out, err := build.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 {
		t.Skip("no real API server is built: set LEVADA_KUBE=1 to build it (about 5 minutes on 2 cores, once), or run test/kube/build.sh -")
	}
	if err != nil {
		t.Fatalf("test/kube/build.sh: %v\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// startControlPlane starts etcd and an API server, which end with the test.
func startControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	c := &controlPlane{t: t, root: t, bin: binaries(t), dir: t.TempDir(), port: freePort(t)}
	c.ca = newAuthority(t, c.dir)
	c.ca.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"})
	c.ca.issue("serviceaccounts", pkix.Name{CommonName: "serviceaccounts"})
	c.etcd = "http://127.0.0.1:" + freePort(t)
	peers := "http://127.0.0.1:" + freePort(t)
	c.run("etcd", "--data-dir", filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", c.etcd, "--advertise-client-urls", c.etcd,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	c.admin = c.client(c.config("admin", "system:masters"))
	c.startServer()
	for _, name := range []string{"orders", "billing"} {
		if _, err := c.admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// run starts a program. It gets a SIGKILL when the test ends, or its process.
func (c *controlPlane) run(name string, args ...string) *exec.Cmd {
	c.t.Helper()
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	log, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// The signal comes when the thread ends that started it, so that must be one that stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	finish := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-finish
	}()
	if err := <-started; err != nil {
		c.t.Fatalf("start %s: %v", name, err)
	}
	c.root.Cleanup(func() {
		c.kill(cmd)
		close(finish)
		if c.root.Failed() {
			c.root.Logf("the last of what %s said:\n%s", name, tail(log.Name()))
		}
	})
	return cmd
}

func (c *controlPlane) kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()
}

// startServer starts the API server and waits until it is ready.
func (c *controlPlane) startServer() {
	c.t.Helper()
	file := func(name string) string { return filepath.Join(c.dir, name) }
	c.server = c.run("kube-apiserver", "--etcd-servers", c.etcd, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", c.port,
		"--service-cluster-ip-range", "10.96.0.0/16", "--cert-dir", c.dir, "--tls-cert-file", file("apiserver.crt"), "--tls-private-key-file", file("apiserver.key"),
		"--client-ca-file", file("ca.crt"), "--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", file("serviceaccounts.crt"), "--service-account-signing-key-file", file("serviceaccounts.key"),
		// Pods are made without a service account, since no controller makes one.
		"--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount", "--allow-privileged=true")
	c.eventually("the API server is ready", 90*time.Second, func() error {
		_, err := c.admin.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(c.t.Context())
		return err
	})
}

func (c *controlPlane) stopServer() { c.kill(c.server) }

// compact makes etcd forget all revisions but the present one.
func (c *controlPlane) compact() {
	c.t.Helper()
	list, err := c.admin.CoreV1().Pods("orders").List(c.t.Context(), metav1.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	body := strings.NewReader(fmt.Sprintf(`{"revision": %q, "physical": true}`, list.ResourceVersion))
	answer, err := http.Post(c.etcd+"/v3/kv/compaction", "application/json", body)
	if err != nil {
		c.t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		c.t.Fatalf("compaction: %s: %s", answer.Status, text)
	}
}

// config is that of a user with its own certificate.
func (c *controlPlane) config(user string, groups ...string) *rest.Config {
	name := strings.ReplaceAll(user, ":", "-")
	c.ca.issue(name, pkix.Name{CommonName: user, Organization: groups})
	file := func(ending string) string { return filepath.Join(c.dir, name+ending) }
	return &rest.Config{Host: "https://127.0.0.1:" + c.port, QPS: 1000, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(c.dir, "ca.crt"), CertFile: file(".crt"), KeyFile: file(".key")}}
}

func (c *controlPlane) client(config *rest.Config) kubernetes.Interface {
	c.t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// sub runs a subtest that uses the control plane.
func (c *controlPlane) sub(name string, f func(t *testing.T)) {
	c.t.Run(name, func(t *testing.T) {
		outer := c.t
		c.t = t
		defer func() { c.t = outer }()
		f(t)
	})
}

// eventually waits for what happens in other processes.
func (c *controlPlane) eventually(what string, limit time.Duration, check func() error) {
	c.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4096):])
}

// authority signs certificates that are good for an hour.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.key, a.cert = a.write("ca", template, template, nil)
	return a
}

func (a *authority) issue(file string, subject pkix.Name) {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(file, &x509.Certificate{SerialNumber: serial, Subject: subject, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, a.cert, a.key)
}

// write makes a key and a certificate and stores both.
func (a *authority) write(file string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	must := func(err error) {
		a.t.Helper()
		if err != nil {
			a.t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	if signer == nil {
		signer = key
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	secret, err := x509.MarshalECPrivateKey(key)
	must(err)
	must(os.WriteFile(filepath.Join(a.dir, file+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(os.WriteFile(filepath.Join(a.dir, file+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
	return key, cert
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
	k.t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: k.namespace, Labels: map[string]string{"app": "orders"}}}
	pod.Spec.NodeName = "node-1"
	pod.Spec.Containers = []corev1.Container{{Name: "worker", Image: "orders:1"}, {Name: "proxy", Image: "proxy:1"}}
	pod, err := k.admin.CoreV1().Pods(k.namespace).Create(k.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		k.t.Fatal(err)
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
	k.t.Helper()
	pods := k.admin.CoreV1().Pods(k.namespace)
	pod, err := pods.Get(k.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	change(pod)
	if _, err := pods.UpdateStatus(k.t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		k.t.Fatal(err)
	}
}

func (k kubelet) status(name string, status corev1.ContainerStatus) {
	k.t.Helper()
	k.update(name, func(p *corev1.Pod) { p.Status.ContainerStatuses[0] = status })
}

func (k kubelet) remove(name string, grace int64) {
	k.t.Helper()
	if err := k.admin.CoreV1().Pods(k.namespace).Delete(k.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		k.t.Fatal(err)
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
	applyExample(t, c.admin, "orders")
	asked := &requests{}
	config := c.config(account)
	config.Wrap(asked.wrap)
	client := c.client(config)
	log := &lines{}
	var mu sync.Mutex
	var deaths []Death
	options := Options{Namespace: "orders", Selector: "app=orders", Logger: slog.New(slog.NewTextHandler(log, nil)), OnDeath: func(d Death) {
		mu.Lock()
		defer mu.Unlock()
		deaths = append(deaths, d)
	}}
	died := func(owner stream.Owner) (Death, bool) {
		mu.Lock()
		defer mu.Unlock()
		for _, d := range deaths {
			if d.Owner == owner {
				return d, true
			}
		}
		return Death{}, false
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
	mustDie := func(owner stream.Owner, limit time.Duration) Death {
		c.t.Helper()
		var d Death
		c.eventually("the leases of "+owner.Incarnation+" end", limit, func() error {
			var ok bool
			if d, ok = died(owner); !ok {
				return fmt.Errorf("no death is reported; health: %v", w.Health())
			}
			return nil
		})
		if _, ok := died(survivor); ok {
			c.t.Fatal("the survivor counts as dead")
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
		c.eventually("the watcher has seen that it is being deleted", within, func() error {
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
		pods := c.admin.CoreV1().Pods("orders")
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
		c.stopServer()
		c.eventually("the watcher notices", 60*time.Second, func() error {
			if w.Health() == nil {
				return errors.New("its health is good")
			}
			return nil
		})
		c.startServer()
		k.remove("behind", 0)
		mustDie(second, 60*time.Second)
		c.eventually("the watcher is well again", 60*time.Second, w.Health)
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
		// While the server is away for the watcher alone, the pod ends and etcd forgets it; then a new server knows nothing of before.
		asked.block(true)
		k.remove("forgotten", 0)
		for i := range 20 {
			k.update("survivor", func(p *corev1.Pod) { p.Status.Message = fmt.Sprint(i) })
		}
		c.compact()
		c.stopServer()
		c.startServer()
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
