package jetstreambuffer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

// TestCursorThatIsLostWithItsServerIsReplaced kills the server that has the cursor while the connection is to another one, so that nothing on the connection
// shows it. The reads are shorter than two heartbeats, within which the client library would notice; the reader counts its wait over several of them,
// and has the driver replace the cursor.
func TestCursorThatIsLostWithItsServerIsReplaced(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	p, at := readerElsewhere(t, c)
	for _, server := range c.Servers {
		if serverName(t, server) == at {
			server.Kill()
			defer server.Start()
		}
	}
	const last = 500 // more than are looked for in the store at once
	if err := put(within(t), p, 2, last); err != nil {
		t.Fatal(err)
	}
	var all []string
	for began := time.Now(); len(all) < last-1; {
		ctx, cancel := context.WithTimeout(within(t), time.Second)
		ids, err := take(ctx, p, 1)
		cancel()
		all = append(all, ids...)
		if err != nil && (!errors.Is(err, context.DeadlineExceeded) || time.Since(began) > time.Minute) {
			t.Fatalf("after %d blocks and %v: %v", len(all), time.Since(began), err)
		}
	}
	ascending(t, all, 2)
}

// readerElsewhere returns a partition whose first message was read, with a cursor at another server than the one it is connected to, and that server's name.
// The servers choose where a cursor is, and each new reader has one of its own.
func readerElsewhere(t *testing.T, c *testnats.Cluster) (p *buffer.Partition, at string) {
	t.Helper()
	for try := range 30 {
		p, js, err := openAt(t, c.Servers[0].DSN(), 3, buffer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if try == 0 {
			err = put(within(t), p, 1, 1)
		}
		d, readErr := p.Read(within(t)) // the next reader gets it again, since it is not done
		if err = errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		at, err := cursorServer(within(t), js)
		if err != nil {
			t.Fatal(err)
		}
		if at != js.Conn().ConnectedServerName() {
			p.Done(within(t), d)
			return p, at
		}
		if err := p.Close(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("each of 30 cursors is at the server of the connection")
	return nil, ""
}

// cursorServer is the name of the server that has the newest cursor of the stream.
func cursorServer(ctx context.Context, js jetstream.JetStream) (name string, err error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return "", err
	}
	var created time.Time
	consumers := s.ListConsumers(ctx)
	for info := range consumers.Info() {
		if info.Cluster != nil && info.Created.After(created) {
			name, created = info.Cluster.Leader, info.Created
		}
	}
	return name, consumers.Err()
}

func serverName(t *testing.T, s *testserver.Server) string {
	t.Helper()
	return testnats.Connect(t, s.DSN()).Conn().ConnectedServerName()
}
