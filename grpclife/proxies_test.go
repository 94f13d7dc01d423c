package grpclife_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/levada-io/levada/grpclife"
	"github.com/levada-io/levada/internal/testserver"
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
	server {
		listen %[2]s http2;
		location / { grpc_pass grpc://%[3]s; }
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

// What a real proxy makes of a stream that its server cut, and of one that ended in the way of this package.
func TestThroughProxies(t *testing.T) {
	for _, proxy := range []struct {
		name, conf, sign string
		args             []string
	}{
		{"nginx", nginxConf, grpclife.SignReset, []string{"-p", "%[1]s", "-c", "%[1]s/conf"}},
		{"haproxy", haproxyConf, grpclife.SignNoTrailers, []string{"-db", "-q", "-f", "%[1]s/conf"}},
	} {
		t.Run(proxy.name, func(t *testing.T) {
			program := testserver.Program(t, proxy.name, proxy.name)
			age, err := grpclife.NewAge(grpclife.AgeOptions{Max: 200 * time.Millisecond, Grace: -1, Methods: []string{bothMethod}})
			if err != nil {
				t.Fatal(err)
			}
			tick := func(ss grpc.ServerStream) error {
				for ss.SendMsg(wrapperspb.String("x")) == nil {
					select {
					case <-ss.Context().Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
				return nil
			}
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer(grpc.ChainStreamInterceptor(age.Stream))
			register(server, handlers{down: func(_ *text, ss grpc.ServerStream) error { return tick(ss) }, both: tick})
			served := make(chan error, 1)
			go func() { served <- server.Serve(listener) }()
			t.Cleanup(func() { server.Stop(); <-served })

			front := startProxy(t, program, proxy.conf, proxy.args, listener.Addr().String())
			restore := grpclife.NewRestoreUnavailable(nil)
			conn := dial(t, func() (net.Conn, error) { return net.Dial("tcp", front) }, grpc.WithChainStreamInterceptor(restore.Stream))
			t.Cleanup(func() { conn.Close() })
			l := &lab{conn: conn}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()

			aged := l.both(t, ctx)
			if err := aged.SendMsg(wrapperspb.String("go")); err != nil { // some proxies open the stream with the first message
				t.Fatal(err)
			}
			_, err = readAll(aged)
			wantEnd(t, err, grpclife.ReasonStreamAge)

			cut := l.down(t, ctx)
			if err := cut.RecvMsg(new(text)); err != nil {
				t.Fatal(err)
			}
			server.Stop()
			_, err = readAll(cut)
			hidden, ok := errors.AsType[*grpclife.HiddenError](err)
			if !ok || status.Code(err) != codes.Unavailable || hidden.Class.Sign != proxy.sign || hidden.Class.Code != codes.Internal {
				t.Errorf("a cut stream ended with %v, want INTERNAL with sign %q restored", err, proxy.sign)
			}
		})
	}
}

// startProxy runs a proxy in the foreground and returns its address.
func startProxy(t *testing.T, program, conf string, args []string, backend string) string {
	t.Helper()
	// A port that is free now may be another's a moment later, so there is more than one attempt.
	for attempt := 1; ; attempt++ {
		addr := testserver.FreeAddress(t)
		err := runProxy(t, program, conf, args, addr, backend)
		if err == nil {
			return addr
		}
		if attempt == 3 {
			t.Fatal(err)
		}
	}
}

func runProxy(t *testing.T, program, conf string, args []string, addr, backend string) error {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "conf"), fmt.Appendf(nil, conf, dir, addr, backend), 0o600); err != nil {
		t.Fatal(err)
	}
	var argv []string
	for _, a := range args {
		argv = append(argv, strings.ReplaceAll(a, "%[1]s", dir))
	}
	cmd := exec.Command(program, argv...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	kill := func() { _ = cmd.Process.Kill(); <-ended }
	t.Cleanup(kill)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			return fmt.Errorf("%s ended: %s", program, said.String())
		default:
		}
		if conn, err := net.Dial("tcp", addr); err == nil {
			return conn.Close()
		}
	}
	kill()
	return fmt.Errorf("%s does not listen on %s: %s", program, addr, said.String())
}
