package forward_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// withHoles is a source that cannot give each third message, and in between some batches without one that it can.
type withHoles struct{ list }

func (s *withHoles) Read(ctx context.Context, limit int) (*source.Batch, error) {
	b, err := s.list.Read(ctx, limit)
	if err != nil {
		return nil, err
	}
	for i := range b.Messages {
		if hole(b.Messages[i].Pos) {
			if b.Broken == nil {
				b.Broken = map[int]*deadletter.Failure{}
			}
			b.Messages[i].Value = nil
			b.Broken[i] = &deadletter.Failure{Reason: deadletter.Source, Error: "no content", Attempts: 1}
		}
	}
	return b, nil
}

func hole(pos uint64) bool { return pos%3 == 1 || pos > 40 && pos <= 50 }

// TestBrokenAtTheSource puts messages aside that the source cannot give; the others pass as if those had not been there, with a stage and without, and
// whether or not the order is kept.
func TestBrokenAtTheSource(t *testing.T) {
	upper := func(_ context.Context, in []flow.Message) ([]function.Outcome, error) {
		o := make([]function.Outcome, len(in))
		for i := range in {
			if len(in[i].Value) == 0 {
				return nil, fmt.Errorf("%s was handed over", in[i].ID)
			}
			o[i].Results = []flow.Message{{Value: []byte(strings.ToUpper(string(in[i].Value)))}}
		}
		return o, nil
	}
	for _, ordered := range []bool{false, true} {
		for _, stages := range [][]forward.Stage{nil, {{Name: "fn", Apply: upper}}} {
			t.Run(fmt.Sprintf("ordered %v, %d stages", ordered, len(stages)), func(t *testing.T) {
				parts, stores := partitions(t, 1, 1<<20, buffer.Options{})
				g := &grave{}
				input := &forward.SourceInput{Vertex: "in", Reader: &withHoles{list{messages: values(100), batch: 7}}, Limit: 1000, OnError: func(error) {}, Logger: quiet}
				router := &forward.Router{Edges: []forward.Edge{{To: "next", Partitions: writers(parts)}}, Events: routerEvents{}}
				if err := runLoop(t, &forward.Loop{Input: input, Output: router, DeadLetters: g, Processor: &forward.Map{Stages: stages, Ordered: ordered}}); err != nil {
					t.Fatal(err)
				}
				_, messages := stored(t, stores[0])
				var got []uint64
				for _, m := range messages {
					if string(m.Value) != fmt.Sprint(m.Pos-1) || !strings.HasPrefix(m.ID, fmt.Sprintf("in/0/%d", m.Pos)) {
						t.Errorf("%s at %d is %q", m.ID, m.Pos, m.Value)
					}
					got = append(got, m.Pos)
				}
				slices.Sort(got)
				var want []uint64
				for pos := uint64(1); pos <= 100; pos++ {
					id := fmt.Sprintf("in/0/%d", pos)
					if failure := g.dead[id]; (failure != nil) != hole(pos) || failure != nil && failure.Error != "no content" {
						t.Errorf("dead letter of %s: %+v", id, failure)
					}
					if !hole(pos) {
						want = append(want, pos)
					}
				}
				if !slices.Equal(got, want) || len(g.dead) != 100-len(want) {
					t.Errorf("%v passed, want %v; %d were put aside", got, want, len(g.dead))
				}
			})
		}
	}
}
