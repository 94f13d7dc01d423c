//go:build linux

// Package kubeapi starts a real Kubernetes API server for tests, built by test/kube/build.sh.
package kubeapi

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/levada-io/levada/internal/testserver"
)

// Server is a real etcd and kube-apiserver, without any controller, scheduler or node: the test plays the kubelet.
type Server struct {
	T      *testing.T // fails when something does not work: that of the present subtest
	Admin  kubernetes.Interface
	root   *testing.T // that whose end is the end of the processes
	bin    string
	dir    string
	etcd   string // URL
	port   string // of the API server
	ca     *authority
	server *exec.Cmd
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
	build := exec.CommandContext(t.Context(), filepath.Join(repositoryRoot(t), "test", "kube", "build.sh"), "-", "controlplane")
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

// repositoryRoot is the folder of the repository, above the package under test.
func repositoryRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "test", "kube", "build.sh")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("there is no test/kube/build.sh above the working directory")
		}
	}
}

// Start starts etcd and an API server, which end with the test, and makes namespaces.
func Start(t *testing.T, namespaces ...string) *Server {
	t.Helper()
	c := &Server{T: t, root: t, bin: binaries(t), dir: t.TempDir(), port: freePort(t)}
	c.ca = newAuthority(t, c.dir)
	c.ca.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"})
	c.ca.issue("serviceaccounts", pkix.Name{CommonName: "serviceaccounts"})
	c.etcd = "http://127.0.0.1:" + freePort(t)
	peers := "http://127.0.0.1:" + freePort(t)
	c.run("etcd", "--data-dir", filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", c.etcd, "--advertise-client-urls", c.etcd,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	c.Admin = c.Client(c.Config("admin", "system:masters"))
	c.StartServer()
	for _, name := range namespaces {
		if _, err := c.Admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// run starts a program. It gets a SIGKILL when the test ends, or its process.
func (c *Server) run(name string, args ...string) *exec.Cmd {
	c.T.Helper()
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	log, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		c.T.Fatal(err)
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
		c.T.Fatalf("start %s: %v", name, err)
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

func (c *Server) kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()
}

// StartServer starts the API server and waits until it is ready.
func (c *Server) StartServer() {
	c.T.Helper()
	file := func(name string) string { return filepath.Join(c.dir, name) }
	c.server = c.run("kube-apiserver", "--etcd-servers", c.etcd, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", c.port,
		"--service-cluster-ip-range", "10.96.0.0/16", "--cert-dir", c.dir, "--tls-cert-file", file("apiserver.crt"), "--tls-private-key-file", file("apiserver.key"),
		"--client-ca-file", file("ca.crt"), "--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", file("serviceaccounts.crt"), "--service-account-signing-key-file", file("serviceaccounts.key"),
		// Pods are made without a service account, since no controller makes one.
		"--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount", "--allow-privileged=true")
	c.Eventually("the API server is ready", 90*time.Second, func() error {
		_, err := c.Admin.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(c.T.Context())
		return err
	})
}

// StopServer ends the API server with a SIGKILL.
func (c *Server) StopServer() { c.kill(c.server) }

// Compact makes etcd forget all revisions but the present one.
func (c *Server) Compact() {
	c.T.Helper()
	list, err := c.Admin.CoreV1().Namespaces().List(c.T.Context(), metav1.ListOptions{})
	if err != nil {
		c.T.Fatal(err)
	}
	body := strings.NewReader(fmt.Sprintf(`{"revision": %q, "physical": true}`, list.ResourceVersion))
	answer, err := http.Post(c.etcd+"/v3/kv/compaction", "application/json", body)
	if err != nil {
		c.T.Fatal(err)
	}
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		c.T.Fatalf("compaction: %s: %s", answer.Status, text)
	}
}

// Config is that of a user with its own certificate.
func (c *Server) Config(user string, groups ...string) *rest.Config {
	name := strings.ReplaceAll(user, ":", "-")
	c.ca.issue(name, pkix.Name{CommonName: user, Organization: groups})
	file := func(ending string) string { return filepath.Join(c.dir, name+ending) }
	return &rest.Config{Host: "https://127.0.0.1:" + c.port, QPS: 1000, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(c.dir, "ca.crt"), CertFile: file(".crt"), KeyFile: file(".key")}}
}

// Client returns a client with that configuration.
func (c *Server) Client(config *rest.Config) kubernetes.Interface {
	c.T.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		c.T.Fatal(err)
	}
	return client
}

// Eventually waits for what happens in other processes.
func (c *Server) Eventually(what string, limit time.Duration, check func() error) {
	c.T.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.T.Fatalf("%s: not within %v: %v", what, limit, err)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(testserver.FreeAddress(t))
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
