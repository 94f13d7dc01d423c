package forward_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// named is a source without positions, which gives messages with the ids that it is made of, one in each batch, and then waits.
type named struct {
	list
	ids   []string
	acked chan string
}

func (n *named) Read(ctx context.Context, _ int) (*source.Batch, error) {
	if len(n.ids) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	b := &source.Batch{Partition: "orders", ByID: true, Messages: []flow.Message{{ID: n.ids[0], Value: []byte(n.ids[0])}}}
	n.ids = n.ids[1:]
	return b, nil
}

func (n *named) Ack(_ context.Context, b *source.Batch) error {
	n.acked <- string(b.Messages[0].Value)
	return nil
}

// TestProcessesOfASourceWithoutPositions: what comes to two processes of a source counts once, and nothing that one of them writes is taken for something of the other,
// although both count their positions from the same number.
func TestProcessesOfASourceWithoutPositions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		var partitions []*buffer.Partition
		var to []*buffer.Writer
		for range 4 {
			p, err := buffer.Open(ctx, membuffer.NewStore(1<<20).Open(), buffer.Options{Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			partitions, to = append(partitions, p), append(to, p.Writer)
			go func() { _ = p.Run(ctx) }()
		}
		acked := make(chan string, 100)
		run := func(number int, ids ...string) {
			loop := &forward.Loop{
				Input: &forward.SourceInput{
					Vertex: "in", Incarnation: "i", Reader: &named{ids: ids, acked: acked}, Replica: forward.Replica{Number: number, First: 1000},
					Limit: 10, OnError: func(error) {}, Logger: quiet,
				},
				Output: &forward.Router{Edges: []forward.Edge{{To: "next", Partitions: to}}, Events: noEvents{}},
				Events: noEvents{}, Logger: quiet,
			}
			go func() { _ = loop.Run(ctx, ctx) }()
		}
		run(0, "a", "b", "c", "d", "e")
		run(1, "f", "g", "h", "i", "j")
		for range 10 {
			<-acked
		}
		run(2, "a", "c", "f", "k") // redelivered to a third one
		for range 4 {
			<-acked
		}
		got := map[string]int{}
		lanes := map[string]bool{}
		for _, p := range partitions {
			for {
				read, stop := context.WithTimeout(ctx, time.Second)
				d, err := p.Read(read)
				stop()
				if err != nil {
					break
				}
				lanes[d.Block.Lane] = true
				for _, m := range d.Block.Messages {
					got[string(m.Value)]++
				}
			}
		}
		if len(got) != 11 {
			t.Errorf("%d of 11 messages came: %v", len(got), got)
		}
		for id, n := range got {
			if n != 1 {
				t.Errorf("%s came %d times", id, n)
			}
		}
		if !lanes["in/orders@i"] || len(lanes) < 2 {
			t.Errorf("the lanes are %v; wanted that of a single process, and one for each of the others", lanes)
		}
		end()
		synctest.Wait()
	})
}

// TestAProcessThatWasReplacedAcknowledgesNothing: a source is not acknowledged while another process may have the place of this one.
func TestAProcessThatWasReplacedAcknowledgesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		p, err := buffer.Open(ctx, membuffer.NewStore(1<<20).Open(), buffer.Options{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = p.Run(ctx) }()
		acked := make(chan string, 100)
		replaced := make(chan struct{})
		reported := make(chan string, 1000)
		loop := &forward.Loop{
			Input: &forward.SourceInput{
				Vertex: "in", Reader: &named{ids: []string{"a", "b"}, acked: acked}, Limit: 10, Logger: quiet,
				OnError: func(err error) { reported <- err.Error() },
				Replica: forward.Replica{Fence: func(context.Context) error {
					select {
					case <-replaced:
						return nil
					default:
						return errors.New("lease lost")
					}
				}},
			},
			Output: &forward.Router{Edges: []forward.Edge{{To: "next", Partitions: []*buffer.Writer{p.Writer}}}, Events: noEvents{}},
			Events: noEvents{}, Logger: quiet,
		}
		go func() { _ = loop.Run(ctx, ctx) }()
		time.Sleep(time.Minute)
		if why := <-reported; len(acked) > 0 || !strings.Contains(why, "lease lost") {
			t.Errorf("%d were acknowledged without the lease; reported: %v", len(acked), why)
		}
		close(replaced) // it was renewed after all
		<-acked
		<-acked
		end()
		synctest.Wait()
	})
}
