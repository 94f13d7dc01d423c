package matrix

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// levada is the path whose cells must be right. The others show that the tests see what is wrong.
const levada = "levada"

// patience is how long a proxy waits for a silent backend.
type patience struct {
	idle               time.Duration // of those that only know how long nothing came
	pingEvery, pingFor time.Duration // of those that ask; 0: as they do by themselves
}

var (
	usual     = patience{idle: time.Minute}
	patient   = patience{idle: time.Minute, pingEvery: time.Minute, pingFor: time.Second}
	impatient = patience{idle: 3 * time.Second, pingEvery: 2 * time.Second, pingFor: time.Second}
)

// proxy is how one is started.
type proxy struct {
	program func(t *testing.T) string
	conf    string // a file; %[1]s is the folder it is in, %[2]s where to listen, %[3]s the backend, %[4]d the idle time in seconds
	args    func(conf, listen, admin, backend string, p patience) []string
	ready   func(listen, admin string) bool
}

// paths are those that PROXY names; nil leads straight to the backend.
var paths = map[string]*proxy{
	"direct": nil,
	levada: {
		program: levadaProgram,
		ready:   readyz,
		args: func(_, listen, admin, backend string, p patience) []string {
			args := []string{"proxy", "--listen", listen, "--admin", admin, "--backend", backend}
			if p.pingEvery > 0 {
				args = append(args, "--ping-interval", p.pingEvery.String(), "--ping-timeout", p.pingFor.String())
			}
			return args
		},
	},
	"nginx": {
		program: func(t *testing.T) string { return testserver.Program(t, "nginx", "nginx") },
		ready:   listens,
		conf: `
daemon off;
master_process off;
error_log %[1]s/error.log;
pid %[1]s/pid;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	upstream backend { server %[3]s max_fails=0; }
	server {
		listen %[2]s http2;
		location / { grpc_pass grpc://backend; grpc_read_timeout %[4]ds; }
	}
}
`,
		args: func(conf, _, _, _ string, _ patience) []string {
			return []string{"-p", filepath.Dir(conf), "-c", conf}
		},
	},
	"haproxy": {
		program: func(t *testing.T) string { return testserver.Program(t, "haproxy", "haproxy") },
		ready:   listens,
		conf: `
defaults
	mode http
	timeout connect 2s
	timeout client 60s
	timeout server %[4]ds
frontend in
	bind %[2]s proto h2
	default_backend out
backend out
	server one %[3]s proto h2
`,
		args: func(conf, _, _, _ string, _ patience) []string { return []string{"-db", "-q", "-f", conf} },
	},
	"nghttpx": {
		program: func(t *testing.T) string { return testserver.Program(t, "nghttpx", "nghttp2-proxy") },
		ready:   listens,
		args: func(_, listen, _, backend string, p patience) []string {
			split := func(address string) string { return strings.Replace(address, ":", ",", 1) }
			return []string{"--conf=/dev/null", "--workers=1", "--no-ocsp", "--frontend=" + split(listen) + ";no-tls", "--backend=" + split(backend) + ";;proto=h2",
				fmt.Sprintf("--backend-read-timeout=%d", int(p.idle.Seconds())), "--stream-read-timeout=60", "--backend-connect-timeout=2"}
		},
	},
}

// chosenPath is the one that the environment asks for.
func chosenPath(t *testing.T) string {
	t.Helper()
	name := os.Getenv("PROXY")
	if name == "" {
		name = levada
	}
	if _, ok := paths[name]; !ok {
		t.Fatalf("PROXY=%s: there is no such path; it can be levada (or empty), direct, nginx, haproxy or nghttpx", name)
	}
	if name == levada {
		levadaProgram(t) // which takes long the first time, and fails once
	}
	return name
}

var levadaProgram = func() func(t *testing.T) string {
	build := sync.OnceValues(func() (string, error) {
		if file := os.Getenv("LEVADA"); file != "" {
			return file, nil
		}
		file := filepath.Join(scratch, "levada")
		if said, err := exec.Command("go", "build", "-o", file, "github.com/levada-io/levada/cmd/levada").CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build of levada: %w\n%s", err, said)
		}
		return file, nil
	})
	return func(t *testing.T) string {
		t.Helper()
		file, err := build()
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
}()

// opened is a path that is ready.
type opened struct {
	addr string // where clients find it
	cmd  *exec.Cmd
}

// open starts the proxy of a path before a backend. More arguments are for levada.
func open(t *testing.T, path, backend string, p patience, more ...string) opened {
	t.Helper()
	proxy := paths[path]
	if proxy == nil {
		return opened{addr: backend}
	}
	program := proxy.program(t)
	// A port that is free now may be another's a moment later, so there is more than one attempt.
	for attempt := 1; ; attempt++ {
		o, err := proxy.start(t, program, backend, p, more)
		if err == nil {
			return o
		}
		if attempt == 3 {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

// leash runs a program, and kills it when its own input ends: the program does not outlive the test. It hands on a SIGTERM.
const leash = `exec 3<&0; "$@" 3<&- & pid=$!; trap 'kill -TERM $pid' TERM; (read -r _ <&3; kill -9 $pid) & while kill -0 $pid 2>/dev/null; do wait $pid; done`

func (x *proxy) start(t *testing.T, program, backend string, p patience, more []string) (opened, error) {
	t.Helper()
	dir, listen, admin := t.TempDir(), testserver.FreeAddress(t), testserver.FreeAddress(t)
	conf := filepath.Join(dir, "conf")
	if x.conf != "" {
		if err := os.WriteFile(conf, fmt.Appendf(nil, x.conf, dir, listen, backend, int(p.idle.Seconds())), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("/bin/sh", append([]string{"-c", leash, "leash", program}, append(x.args(conf, listen, admin, backend, p), more...)...)...)
	cmd.Stdout, cmd.Stderr = log, log
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		input.Close()
		<-ended
		if t.Failed() {
			t.Logf("%s said: %s", filepath.Base(program), tail(log.Name()))
		}
	})
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			return opened{}, fmt.Errorf("ended: %s", tail(log.Name()))
		default:
		}
		if x.ready(listen, admin) {
			return opened{listen, cmd}, nil
		}
	}
	return opened{}, fmt.Errorf("is not ready on %s: %s", listen, tail(log.Name()))
}

// listens: something takes connections.
func listens(listen, _ string) bool {
	c, err := net.Dial("tcp", listen)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// readyz: the proxy says that it is ready.
func readyz(_, admin string) bool {
	answer, err := http.Get("http://" + admin + "/readyz")
	if err != nil {
		return false
	}
	return answer.Body.Close() == nil && answer.StatusCode == http.StatusOK
}
