package stream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

const nginxConf = `
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
		location / { grpc_pass grpc://backend; }
	}
}
`

const haproxyConf = `
defaults
	mode http
	timeout connect 2s
	timeout client 60s
	timeout server 60s
frontend in
	bind %[2]s proto h2
	default_backend out
backend out
	server one %[3]s proto h2
`

// A stream goes through a real proxy, behind which the connection is closed and reset, and the producer is ended and started again; the proxy
// is killed, too. The job completes with every record once, and nothing of it is taken for a refusal.
func TestThroughProxies(t *testing.T) {
	if testing.Short() {
		t.Skip("real proxies need some seconds")
	}
	for _, proxy := range []struct {
		name, conf string
		args       []string
	}{
		{"nginx", nginxConf, []string{"-p", "%[1]s", "-c", "%[1]s/conf"}},
		{"haproxy", haproxyConf, []string{"-db", "-q", "-f", "%[1]s/conf"}},
	} {
		t.Run(proxy.name, func(t *testing.T) {
			program := testserver.Program(t, proxy.name, proxy.name)
			const n = 20_000
			records := numbers(n)
			backend := startBackend(t, "127.0.0.1:0", slowly(records))
			bad := streamtest.NewBadNet(t, backend.addr)
			front := startProxy(t, program, proxy.conf, proxy.args, bad.Addr())

			l := newLab(t, nil)
			conns := stream.NewConnections(front.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
			t.Cleanup(func() { conns.Close() })
			l.config.Dial, l.config.ReleaseAfterFailures, l.config.NoProgress = conns.Dial, 1000, stream.AtOnce
			l.config.Retry = stream.Backoff{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond}
			l.config.PollInterval = 100 * time.Millisecond
			l.start("s", l.store.Sink(l.table.handle))
			job := l.submit(stream.Job{Stream: "s"})
			faults := []func(){
				func() { bad.Reset() },
				func() { bad.Cut() },
				func() { backend.end(); backend = startBackend(t, backend.addr, slowly(records)) },
				func() {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					if err := stream.Shutdown(ctx, backend.grpc, backend.server); err != nil {
						t.Error(err)
					}
					backend = startBackend(t, backend.addr, slowly(records))
				},
				func() { front.kill(); front = front.again() },
				func() { bad.Refuse(true); bad.Reset(); time.Sleep(300 * time.Millisecond); bad.Refuse(false) },
			}
			for i, fault := range faults {
				l.await(fmt.Sprintf("at fault %d", i), time.Minute, func() bool {
					return l.table.len() > (i+1)*n/(len(faults)+2) || l.get(job.ID).State.Final()
				})
				fault()
			}
			job = l.end(job.ID, 2*time.Minute)
			l.is(job, stream.Completed, "")
			must(t, l.table.holds(records))
			var want, got stream.Digest
			for i, r := range records {
				r.Seq = uint64(i + 1)
				want.Add(r)
			}
			for _, r := range l.table.rows {
				got.Add(r)
			}
			if got != want {
				t.Errorf("digest %v, not %v", got, want)
			}
			var texts []string
			for _, e := range l.seen(stream.EventDisconnected) {
				if cut := stream.Classify(e.Err); !errors.Is(e.Err, context.Canceled) && e.Reason == "" && (!cut.Transport || cut.Fatal) {
					t.Errorf("taken for a refusal: %v", e.Err)
				}
				texts = append(texts, e.Err.Error())
			}
			slices.Sort(texts)
			if len(texts) < len(faults)-1 {
				t.Errorf("%d cuts by %d faults", len(texts), len(faults))
			}
			t.Logf("%d cuts:\n%s", len(texts), strings.Join(slices.Compact(texts), "\n"))
		})
	}
}

// slowly serves records at a pace at which there is time for faults.
func slowly(records []stream.Record) stream.Source {
	return opens(func(ctx context.Context, q stream.Query) (stream.Cursor, error) {
		inner, err := stream.Slice(records...).Open(ctx, q)
		n := 0
		return cursor{value: func(dst []byte) ([]byte, error) { return inner.Value(dst) }, next: func(ctx context.Context) ([]byte, error) {
			if n++; n%100 == 0 && !sleep(ctx, 10*time.Millisecond) {
				return nil, ctx.Err()
			}
			return inner.Next(ctx)
		}}, err
	})
}

// tcpBackend is a producer on a real port.
type tcpBackend struct {
	addr   string
	grpc   *grpc.Server
	server *stream.Server
	end    func()
}

func startBackend(t *testing.T, addr string, source stream.Source) *tcpBackend {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	must(t, err)
	b := &tcpBackend{addr: listener.Addr().String(), grpc: grpc.NewServer(), server: valid(stream.NewServer(stream.ServerConfig{Logger: quiet}))}
	b.server.Handle("s", source)
	b.server.Register(b.grpc)
	done := make(chan struct{})
	go func() { defer close(done); b.grpc.Serve(listener) }()
	b.end = func() { b.grpc.Stop(); <-done }
	t.Cleanup(b.end)
	return b
}

// proxyProcess is a proxy in the foreground.
type proxyProcess struct {
	addr  string
	kill  func()
	again func() *proxyProcess // on the same port
}

func startProxy(t *testing.T, program, conf string, args []string, backend string) *proxyProcess {
	t.Helper()
	// A port that is free now may be another's a moment later, so there is more than one attempt.
	for attempt := 1; ; attempt++ {
		addr := testserver.FreeAddress(t)
		p, err := runProxy(t, program, conf, args, addr, backend)
		if err == nil {
			return p
		}
		if attempt == 3 {
			t.Fatal(err)
		}
	}
}

func runProxy(t *testing.T, program, conf string, args []string, addr, backend string) (*proxyProcess, error) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "conf"), fmt.Appendf(nil, conf, dir, addr, backend), 0o600))
	var argv []string
	for _, a := range args {
		argv = append(argv, strings.ReplaceAll(a, "%[1]s", dir))
	}
	cmd := exec.Command(program, argv...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	p := &proxyProcess{addr: addr, kill: sync.OnceFunc(func() { _ = cmd.Process.Kill(); <-ended })}
	p.again = func() *proxyProcess {
		t.Helper()
		next, err := runProxy(t, program, conf, args, addr, backend)
		must(t, err)
		return next
	}
	t.Cleanup(p.kill)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			return nil, fmt.Errorf("%s ended: %s", program, said.String())
		default:
		}
		if conn, err := net.Dial("tcp", addr); err == nil {
			return p, conn.Close()
		}
	}
	p.kill()
	return nil, fmt.Errorf("%s does not listen on %s: %s", program, addr, said.String())
}
