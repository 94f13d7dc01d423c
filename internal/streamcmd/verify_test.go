package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
)

// followed is a source that waits at its end for more.
type followed struct{ stream.Source }

func (s followed) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	c, err := s.Source.Open(ctx, q)
	return waiting{c}, err
}

type waiting struct{ stream.Cursor }

func (c waiting) Next(ctx context.Context) ([]byte, error) {
	key, err := c.Cursor.Next(ctx)
	if err == nil {
		return key, nil
	}
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func TestReadAgain(t *testing.T) {
	var records []stream.Record
	for i := range 3000 {
		records = append(records, stream.Record{Key: fmt.Appendf(nil, "%04d", i), Value: []byte("value")})
	}
	done := stream.Checkpoint{Seq: 3000, Done: true}
	for _, c := range []struct {
		what   string
		source stream.Source
		upTo   stream.Checkpoint
		away   int // how often the producer is not reached, in the beginning
		want   int
		err    string
		within time.Duration
	}{
		{"nothing was read", nil, stream.Checkpoint{}, 100, 0, "", 0},
		{"the whole stream", stream.Slice(records...), done, 0, 3000, "", time.Second},
		{"a part of it", stream.Slice(records...), stream.Checkpoint{Seq: 1500}, 0, 1500, "", time.Second},
		{"it has fewer records now", stream.Slice(records[:2000]...), done, 0, 2000, "", time.Second},
		{"it follows its source by now", followed{stream.Slice(records...)}, done, 0, 3000, "", endWithin + time.Second},
		{"the producer is away for a moment", stream.Slice(records...), done, 2, 3000, "", 10 * time.Second},
		{"the producer is away", stream.Slice(records...), done, 1 << 30, 0, "nobody is there", 20 * time.Second},
		{"the producer has no such stream", nil, done, 0, 0, "unknown stream", time.Second},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := valid(stream.NewServer(stream.ServerConfig{Logger: slog.New(slog.DiscardHandler)}))
				if c.source != nil {
					server.Handle("s", c.source)
				}
				g, listener := grpc.NewServer(), bufconn.Listen(1<<20)
				server.Register(g)
				served := make(chan error)
				go func() { served <- g.Serve(listener) }()
				defer func() { g.Stop(); <-served }()
				attempts := 0
				conns := stream.NewConnections("passthrough:///s", grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
						if attempts++; attempts <= c.away {
							return nil, errors.New("nobody is there")
						}
						return listener.DialContext(ctx)
					}))
				defer conns.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				begun, n, said := time.Now(), 0, ""
				for r, err := range readAgain(ctx, conns, stream.Job{ID: "j", Stream: "s"}, c.upTo) {
					if err != nil {
						said = err.Error()
						continue
					}
					if n++; r.Seq != uint64(n) || string(r.Key) != string(records[n-1].Key) || string(r.Value) != "value" {
						t.Fatalf("record %d is %+v", n, r)
					}
				}
				if n != c.want || (said != "") != (c.err != "") || !strings.Contains(said, c.err) {
					t.Errorf("%d records and error %q, want %d and %q", n, said, c.want, c.err)
				}
				if took := time.Since(begun); took > c.within {
					t.Errorf("it took %v, want at most %v", took, c.within)
				}
			})
		})
	}
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
