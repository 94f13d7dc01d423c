// Package life runs levada proxy as users do, as a process with other processes behind it, through what happens to it in a long life: limits, restarts, drains,
// faults of all kinds under load.
//
// LEVADA_PROGRAM is the program if it is not to be built. LIFE_STREAMS and LIFE_DRAIN make the drain larger (10000, 30s), SOAK the soak longer (30m).
package life

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/internal/testserver"
)

const (
	unary  = "/levada.test.Life/Unary"
	stream = "/levada.test.Life/Stream"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

var program string

func TestMain(m *testing.M) {
	if address := os.Getenv("LIFE_BACKEND"); address != "" {
		backendMain(address)
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if program = os.Getenv("LEVADA_PROGRAM"); program == "" {
		dir, err := os.MkdirTemp("", "levada-life-")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "levada")
		if out, err := exec.Command("go", "build", "-o", program, "github.com/levada-io/levada/cmd/levada").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// backendMain is a backend's process: it answers a unary call with its address, and a stream with its address again and again. SIGTERM stops it gracefully.
func backendMain(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	limit, _ := strconv.Atoi(os.Getenv("LIFE_MAX_STREAMS"))
	every, _ := time.ParseDuration(os.Getenv("LIFE_EVERY"))
	options := []grpc.ServerOption{grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		in := &wrapperspb.StringValue{}
		if err := s.RecvMsg(in); err != nil {
			return err
		}
		out := &wrapperspb.StringValue{Value: address}
		if method, _ := grpc.MethodFromServerStream(s); method == unary {
			return s.SendMsg(out)
		}
		for {
			if err := s.SendMsg(out); err != nil {
				return err
			}
			select {
			case <-time.After(every):
			case <-s.Context().Done():
				return s.Context().Err()
			}
		}
	})}
	if limit > 0 {
		options = append(options, grpc.MaxConcurrentStreams(uint32(limit)))
	}
	// The proxy may be configured to ping more often than gRPC's servers like.
	options = append(options, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Millisecond, PermitWithoutStream: true}))
	server := grpc.NewServer(options...)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		time.AfterFunc(2*time.Second, server.Stop) // what streams leave open
		server.GracefulStop()
	}()
	_ = server.Serve(l)
	time.Sleep(100 * time.Millisecond) // GracefulStop is about to return, too
}

// process is one that was started for a test, and is killed at its end.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  *testserver.Tail
	done chan struct{}
	err  error // of Wait, once done is closed
}

func startProcess(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, log: &testserver.Tail{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		<-p.done
	})
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// wait waits for the end of the process.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(2 * patience):
		p.t.Fatalf("%s does not end:\n%s", p.cmd.Path, p.log)
		return nil
	}
}

// backend starts a backend's process at an address, and waits until it listens.
func backend(t testing.TB, address string, env ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "LIFE_BACKEND="+address, "LIFE_EVERY=1h"), env...)
	p := startProcess(t, cmd)
	eventually(t, "the backend listens", func() bool { return listens(address) })
	return p
}

func listens(address string) bool {
	nc, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		_ = nc.Close()
	}
	return err == nil
}

// proxy is a process of levada proxy.
type proxy struct {
	*process
	addr, admin string
}

func startProxy(t testing.TB, config string) *proxy {
	t.Helper()
	p := &proxy{addr: testserver.FreeAddress(t), admin: testserver.FreeAddress(t)}
	file := filepath.Join(t.TempDir(), "proxy.yaml")
	text := fmt.Sprintf("listeners: [{address: %q}]\nadmin: {address: %q}\n%s", p.addr, p.admin, config)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.process = startProcess(t, exec.Command(program, "proxy", "--config", file))
	eventually(t, "the proxy is ready", func() bool {
		select {
		case <-p.done:
			t.Fatalf("the proxy has ended: %v\n%s", p.err, p.log)
		default:
		}
		r, err := http.Get("http://" + p.admin + "/readyz")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	return p
}

// metrics are the sums of the proxy's series by name, and the series with their labels.
func (p *proxy) metrics() map[string]float64 {
	p.t.Helper()
	r, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	all := map[string]float64{}
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		line := lines.Text()
		series, value, ok := strings.Cut(line, "} ")
		if ok {
			series += "}"
		} else {
			series, value, _ = strings.Cut(line, " ")
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || strings.HasPrefix(line, "#") {
			continue
		}
		name, _, _ := strings.Cut(series, "{")
		all[name] += n
		if series != name {
			all[series] = n
		}
	}
	return all
}

// memory is the resident memory in bytes.
func (p *proxy) memory() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// descriptors is how many files and sockets are open.
func (p *proxy) descriptors() int {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(all)
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// Callers.

// dial makes a client's connection. It retries nothing by itself.
func dial(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	c, err := connect(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func connect(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), grpc.WithNoProxy())
}

// ask makes a unary call, and returns the address of the backend that answered.
func ask(ctx context.Context, c *grpc.ClientConn) (string, error) {
	out := &wrapperspb.StringValue{}
	err := c.Invoke(ctx, unary, &wrapperspb.StringValue{}, out)
	return out.Value, err
}

// watch is an open stream.
type watch struct {
	s      grpc.ClientStream
	from   string // the address of the backend, once open has returned
	cancel context.CancelFunc
}

// open opens a stream, and waits for its first message.
func open(ctx context.Context, c *grpc.ClientConn) (*watch, error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, stream)
	if err == nil {
		if err = s.SendMsg(&wrapperspb.StringValue{}); err == nil {
			err = s.CloseSend()
		}
		if errors.Is(err, io.EOF) { // RecvMsg says why
			err = nil
		}
	}
	w := &watch{s: s, cancel: cancel}
	if err == nil {
		w.from, err = w.next()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return w, nil
}

func (w *watch) next() (string, error) {
	m := &wrapperspb.StringValue{}
	err := w.s.RecvMsg(m)
	return m.Value, err
}

// reason is what the proxy says in the trailers of a stream that it has ended.
func (w *watch) reason() string { return strings.Join(w.s.Trailer().Get("levada-stream-ended"), ",") }

func code(err error) codes.Code { return status.Code(err) }
