package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) {
	if os.Getenv(envBenchChild) != "" {
		benchChild()
		return
	}
	goleak.VerifyTestMain(m)
}

// running is a function under test, served on a real socket as a platform would find it.
type running struct {
	t    *testing.T
	dir  string
	conn *grpc.ClientConn
	stop context.CancelFunc
	done chan error
	info serverInfo
}

// start serves a function and connects to it as the platform does: info file first, then the socket.
func start(t *testing.T, at endpoint, serve func(context.Context, ...Option) error, opts ...Option) *running {
	t.Helper()
	dir, err := os.MkdirTemp("", "sdk") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, stop := context.WithCancel(t.Context())
	r := &running{t: t, dir: dir, stop: stop, done: make(chan error, 1)}
	go func() { r.done <- serve(ctx, append([]Option{WithSocketDir(dir)}, opts...)...) }()
	t.Cleanup(func() {
		stop()
		if r.conn != nil {
			r.conn.Close()
		}
		if err, open := <-r.done; open && err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	r.info = r.readInfo(at.info)
	r.conn = dial(t, filepath.Join(dir, at.socket))
	return r
}

func (r *running) readInfo(name string) (info serverInfo) {
	r.t.Helper()
	for range 200 {
		content, err := os.ReadFile(filepath.Join(r.dir, name))
		if err == nil {
			content, ended := bytes.CutSuffix(content, []byte(infoEnd))
			if !ended {
				r.t.Fatalf("server info is not complete: %s", content)
			}
			if err := json.Unmarshal(content, &info); err != nil {
				r.t.Fatal(err)
			}
			return info
		}
		select {
		case err := <-r.done:
			close(r.done)
			r.t.Fatalf("serve: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	r.t.Fatalf("no %s", name)
	return info
}

// ended waits for the function to end by itself and returns its error.
func (r *running) ended() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		close(r.done)
		return err
	case <-time.After(10 * time.Second):
		r.t.Fatal("the function has not ended")
		return nil
	}
}

func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, want codes.Code) *status.Status {
	t.Helper()
	got := status.Convert(err)
	if got.Code() != want {
		t.Fatalf("status %v, want %v", got, want)
	}
	return got
}

func wantEOF(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, io.EOF) {
		t.Fatalf("stream ended with %v, want a clean end", err)
	}
}
