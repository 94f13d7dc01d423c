package forward

import (
	"fmt"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/flow"
)

// divided are partitions with so many shards each.
func divided(t *testing.T, partitions, shards int) (all [][]*buffer.Partition, writers []*buffer.Writer) {
	t.Helper()
	for range partitions {
		s := membuffer.NewStore(1 << 20)
		s.Divide(shards)
		var drivers []buffer.Driver
		for n := range shards {
			d := s.Open()
			if shards > 1 {
				d = d.(buffer.Sharded).Shard(n)
			}
			drivers = append(drivers, d)
		}
		parts, err := buffer.OpenShards(t.Context(), drivers, buffer.Options{Name: "test"})
		if err != nil {
			t.Fatal(err)
		}
		all, writers = append(all, parts), append(writers, parts[0].Writer)
	}
	return all, writers
}

// TestAMessageGoesToTheSameShardForEver: where a message goes is written down here. A version that chooses otherwise stores messages twice that it writes again after an upgrade.
func TestAMessageGoesToTheSameShardForEver(t *testing.T) {
	for _, c := range []struct {
		partitions, shards int
		byKey, byID        bool
		want               string
	}{
		{partitions: 3, shards: 1, want: "0.0 1.0 2.0 0.0 1.0 2.0 0.0 1.0"},
		{partitions: 1, shards: 4, want: "0.0 0.1 0.2 0.3 0.0 0.1 0.2 0.3"},
		{partitions: 2, shards: 2, want: "0.0 1.0 0.1 1.1 0.0 1.0 0.1 1.1"},
		{partitions: 3, shards: 1, byKey: true, want: "1.0 1.0 2.0 2.0 0.0 0.0 2.0 2.0"},
		{partitions: 3, shards: 4, byKey: true, want: "1.0 1.0 2.3 2.3 0.1 0.1 2.3 2.3"},
		{partitions: 1, shards: 4, byKey: true, want: "0.1 0.1 0.3 0.3 0.3 0.3 0.3 0.3"},
		{partitions: 2, shards: 4, byID: true, want: "1.3 0.3 1.3 1.2 1.3 0.3 1.3 0.0"},
	} {
		_, writers := divided(t, c.partitions, c.shards)
		edge := Edge{Partitions: writers, ByKey: c.byKey}
		got := ""
		for i := range uint64(8) {
			p, s := edge.target(&Origin{ByID: c.byID, Stride: 10}, &flow.Message{Pos: i*10 + 3, Keys: []string{fmt.Sprintf("key %d", i/2)}}, fmt.Sprintf("id %d", i))
			got += fmt.Sprintf(" %d.%d", p, s)
		}
		if got = got[1:]; got != c.want {
			t.Errorf("%+v: messages go to %s", c, got)
		}
	}
}

// TestShardsAreWrittenApartAndInLanesOfTheirOwn: a router writes each message into its shard, again into the same one, and readers of two shards write lanes of different names.
func TestShardsAreWrittenApartAndInLanesOfTheirOwn(t *testing.T) {
	all, writers := divided(t, 2, 3)
	router := &Router{Edges: []Edge{{To: "x", Partitions: writers}}}
	router.Events = noRouterEvents{}
	for range 2 { // the second time as after a crash
		e := &Emission{Origin: Origin{Lane: "in", Stride: 1}, Lo: 1, Hi: 12, Floor: func() uint64 { return 0 }}
		for pos := uint64(1); pos <= 12; pos++ {
			e.In = append(e.In, flow.Message{Pos: pos, ID: fmt.Sprint(pos), Value: []byte("x")})
		}
		d := router.Begin(e)
		if err := d.Submit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	lanes := map[string]bool{}
	for p := range all {
		for s, part := range all[p] {
			d, err := part.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range d.Block.Messages {
				if m.Pos%2 != uint64(p) || m.Pos/2%3 != uint64(s) || i > 0 && m.Pos <= d.Block.Messages[i-1].Pos {
					t.Errorf("message %d of shard %d.%d is %d", i, p, s, m.Pos)
				}
			}
			if n := len(d.Block.Messages); n != 2 || part.Pending() != 2 {
				t.Errorf("shard %d.%d has %d messages, and %d are pending; want 2", p, s, n, part.Pending())
			}
			in := BufferInput{Vertex: "x", Index: p, Partition: part.Reader}
			lanes[in.Lane()] = true
		}
	}
	if len(lanes) != 6 {
		t.Errorf("the readers write the lanes %v, want one for each", lanes)
	}
	_, whole := divided(t, 1, 1)
	if whole[0].Shards() != 1 {
		t.Error("a partition without shards has several")
	}
}

// TestALaneOfAPartitionWithoutShardsKeepsItsName: what reads it knows its positions by that name.
func TestALaneOfAPartitionWithoutShardsKeepsItsName(t *testing.T) {
	all, _ := divided(t, 1, 1)
	in := BufferInput{Vertex: "x", Index: 2, Partition: all[0][0].Reader}
	if in.Lane() != "x/2@m" {
		t.Errorf("the lane is %q, want %q", in.Lane(), "x/2@m")
	}
}

type noRouterEvents struct{ Observer }

func (noRouterEvents) Wrote(string, int, int)           {}
func (noRouterEvents) Dropped(string, int, int, string) {}
