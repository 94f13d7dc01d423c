// Package target starts the proxy that tests are about: levada proxy, built from this tree, or one of those it is compared with, which also shows that
// the tests themselves are right.
//
// HOSTILE_TARGET says which: levada (the default; HOSTILE_PROGRAM is its file if it is not to be built), nghttpx, haproxy, reverseproxy (Go's net/http on both sides), or the host:port of one that somebody
// else started. Such a one must send its requests to HOSTILE_BACKEND, and those for /hostile.Evil/ to HOSTILE_EVIL: the tests listen there. HOSTILE_PID is its
// process, for its memory; without it, none is measured.
package target

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// EvilPath is where the paths begin that go to Options.Evil.
const EvilPath = "/hostile.Evil/"

// Options say what the proxy stands before.
type Options struct {
	Backend string // host:port that answers everything; it speaks HTTP/2 without TLS
	Evil    string // host:port that answers what is below EvilPath; "" for none
	TLS     bool   // clients speak TLS
	// Name of the proxy; "" is the one that the environment asks for.
	Name string
	// Defaults leaves levada's limits as they are by default, and Memory is its GOMEMLIMIT; "" is 512MiB.
	Defaults bool
	Memory   string
	// MaxMessage is the size in bytes from which on messages are refused; 0 is no limit. Only levada has one.
	MaxMessage int
}

// Proxy is a running proxy.
type Proxy struct {
	Name    string
	Addr    string // host:port for clients
	Cert    string // file with its certificate, which is also its own authority; "" without TLS
	PID     int    // 0 if unknown
	process *os.Process
	log     *testserver.Tail
	done    chan struct{} // closed when the process has ended
}

// Name is the proxy that the environment asks for.
func Name() string { return cmp.Or(os.Getenv("HOSTILE_TARGET"), "levada") }

// Backend is the address at which a test's backend listens.
func Backend() string { return cmp.Or(os.Getenv("HOSTILE_BACKEND"), "127.0.0.1:0") }

// EvilBackend is the address at which a test's malicious backend listens.
func EvilBackend() string { return cmp.Or(os.Getenv("HOSTILE_EVIL"), "127.0.0.1:0") }

// Start starts the proxy and waits until it listens. It is killed when the test ends.
func Start(t testing.TB, o Options) *Proxy {
	t.Helper()
	p := &Proxy{Name: cmp.Or(o.Name, Name()), log: &testserver.Tail{}, done: make(chan struct{})}
	if strings.Contains(p.Name, ":") {
		p.Addr = p.Name
		p.PID, _ = strconv.Atoi(os.Getenv("HOSTILE_PID"))
		if o.TLS {
			t.Skip("a proxy that somebody else started is not asked for TLS")
		}
		return p
	}
	dir := t.TempDir()
	var key string
	if o.TLS {
		p.Cert, key = certificate(t, dir)
	}
	p.Addr = testserver.FreeAddress(t)
	ready := func() bool {
		c, err := net.DialTimeout("tcp", p.Addr, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	var cmd *exec.Cmd
	switch p.Name {
	case "levada":
		admin := testserver.FreeAddress(t)
		cmd = levada(t, dir, o, p.Addr, admin, p.Cert, key)
		ready = func() bool {
			r, err := http.Get("http://" + admin + "/readyz")
			if err != nil {
				return false
			}
			_ = r.Body.Close()
			return r.StatusCode == http.StatusOK
		}
	case "nghttpx":
		cmd = nghttpx(t, dir, o, p.Addr, p.Cert, key)
	case "haproxy":
		cmd = haproxy(t, dir, o, p.Addr, p.Cert, key)
	case "reverseproxy":
		cmd = reverseProxy(t, o, p.Addr, p.Cert, key)
	default:
		t.Fatalf("HOSTILE_TARGET is %q: want levada, nghttpx, haproxy, reverseproxy or host:port", p.Name)
	}
	p.start(t, cmd, ready)
	return p
}

func (p *Proxy) start(t testing.TB, cmd *exec.Cmd, ready func() bool) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.PID = cmd.Process.Pid
	go func() {
		_ = cmd.Wait() // says only that it was killed
		close(p.done)
	}()
	p.process = cmd.Process
	t.Cleanup(p.Stop)
	for end := time.Now().Add(20 * time.Second); !ready(); time.Sleep(20 * time.Millisecond) {
		if !p.Alive() || time.Now().After(end) {
			t.Fatalf("%s does not listen on %s:\n%s", p.Name, p.Addr, p.Log())
		}
	}
}

// Alive says whether the process still runs.
func (p *Proxy) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Stop kills the process. It can be repeated.
func (p *Proxy) Stop() {
	if p.process != nil {
		_ = p.process.Kill()
		<-p.done
	}
}

// Log is the end of what the process has written.
func (p *Proxy) Log() string { return p.log.String() }

// Memory is the resident memory of the process in bytes, 0 if unknown.
func (p *Proxy) Memory() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(status))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// Files is how many descriptors the process has open, 0 if unknown.
func (p *Proxy) Files() int {
	all, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID)) // none of a process that has ended
	return len(all)
}

// CPU is the processor time that the process has used, 0 if unknown.
func (p *Proxy) CPU() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(stat), ") ") // the name before it may hold anything
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ is 100 on every Linux
}

// levada builds the tree's own proxy: what is tested is what the sources say. Its timeouts are shorter than by default, so that tests can wait for them.
func levada(t testing.TB, dir string, o Options, addr, admin, cert, key string) *exec.Cmd {
	t.Helper()
	buildOnce.Do(func() {
		if program = os.Getenv("HOSTILE_PROGRAM"); program != "" {
			return
		}
		if built, buildErr = os.MkdirTemp("", "levada-target-"); buildErr != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-o", built, "github.com/levada-io/levada/cmd/levada").CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("go build: %w\n%s", err, out)
		}
		program = filepath.Join(built, "levada")
	})
	must(t, buildErr)
	text := fmt.Sprintf("listeners:\n- address: %s\n", addr)
	if !o.Defaults {
		text += "  handshakeTimeout: 2s\n  stallTimeout: 2s\n  maxStreams: 1000\n"
	}
	if o.TLS {
		text += fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", cert, key)
	}
	text += fmt.Sprintf("admin: {address: %q}\nbackends:\n- {name: honest, target: %q}\n", admin, o.Backend)
	routes := "- backend: honest\n"
	if o.MaxMessage > 0 {
		routes += fmt.Sprintf("  maxMessageBytes: {request: %d, response: %d}\n", o.MaxMessage, o.MaxMessage)
	}
	if o.Evil != "" {
		text += fmt.Sprintf("- {name: evil, target: %q}\n", o.Evil)
		routes += "- {match: {service: hostile.Evil}, backend: evil}\n"
	}
	conf := filepath.Join(dir, "proxy.yaml")
	must(t, os.WriteFile(conf, []byte(text+"routes:\n"+routes), 0o600))
	cmd := exec.Command(program, "proxy", "--config", conf)
	cmd.Env = append(os.Environ(), "GOMEMLIMIT="+cmp.Or(o.Memory, "512MiB")) // as in a small pod: the proxy's own bounds follow from it
	return cmd
}

// The program is built once for all tests of a process.
var (
	buildOnce sync.Once
	built     string // the folder, to be removed
	program   string
	buildErr  error
)

// Run is what TestMain calls instead of m.Run and os.Exit. In a process that Start has started as reverseproxy it is this proxy.
func Run(m *testing.M) {
	reverseProxyMain()
	code := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(code)
}

func nghttpx(t testing.TB, dir string, o Options, addr, cert, key string) *exec.Cmd {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	args := []string{"--conf=/dev/null", "--workers=1", "--single-process", "--log-level=ERROR", "--errorlog-file=/dev/stderr", "--accesslog-file=/dev/null",
		"--backend=" + strings.Replace(o.Backend, ":", ",", 1) + ";/;proto=h2"}
	if o.Evil != "" {
		args = append(args, "--backend="+strings.Replace(o.Evil, ":", ",", 1)+";"+EvilPath+";proto=h2")
	}
	front := "--frontend=" + host + "," + port
	if o.TLS {
		return exec.Command(testserver.Program(t, "nghttpx", "nghttp2-proxy"), append(args, front, key, cert)...)
	}
	return exec.Command(testserver.Program(t, "nghttpx", "nghttp2-proxy"), append(args, front+";no-tls")...)
}

func haproxy(t testing.TB, dir string, o Options, addr, cert, key string) *exec.Cmd {
	t.Helper()
	bind := addr + " proto h2"
	if o.TLS {
		both := filepath.Join(dir, "both.pem")
		must(t, os.WriteFile(both, append(read(t, cert), read(t, key)...), 0o600))
		bind = addr + " ssl crt " + both + " alpn h2"
	}
	conf := filepath.Join(dir, "haproxy.cfg")
	text := fmt.Sprintf(`global
	nbthread 1
defaults
	mode http
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	timeout http-request 5s
frontend in
	bind %s
	use_backend evil if { path_beg %s }
	default_backend out
backend out
	server one %s proto h2
backend evil
	server one %s proto h2
`, bind, EvilPath, o.Backend, cmp.Or(o.Evil, o.Backend))
	must(t, os.WriteFile(conf, []byte(text), 0o600))
	return exec.Command(testserver.Program(t, "haproxy", "haproxy"), "-db", "-q", "-f", conf)
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
