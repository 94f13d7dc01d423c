package forward_test

import (
	"testing"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/forward"
)

// BenchmarkHop moves messages of 256 bytes from one buffer in memory to another, in blocks of 500: what a hop costs without a store and a function.
func BenchmarkHop(b *testing.B) {
	const n = 200_000
	payload := make([]byte, 256)
	for b.Loop() {
		messages := values(n)
		for i := range messages {
			messages[i].Value = payload
		}
		in, out := benchPartition(b, "in"), benchPartition(b, "out")
		fill := &forward.Loop{
			Input: inputOf(&list{messages: messages, batch: 500}), Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output: &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "in", Partitions: writers([]*buffer.Partition{in})}}},
		}
		if err := fill.Run(b.Context(), b.Context()); err != nil {
			b.Fatal(err)
		}
		input := &forward.BufferInput{Vertex: "x", Partition: in.Reader, Limit: 500}
		go input.Run(b.Context())
		ended := make(chan error, 1)
		hop := &forward.Loop{
			Input: input, Events: loopEvents{}, Logger: quiet, DeadLetters: &grave{},
			Output: &forward.Router{Events: routerEvents{}, Edges: []forward.Edge{{To: "out", Partitions: writers([]*buffer.Partition{out})}}},
		}
		go func() { ended <- hop.Run(b.Context(), b.Context()) }()
		for in.ReadFloor() < in.KnownEnd() {
			moved := in.FloorMoved()
			if in.ReadFloor() < in.KnownEnd() {
				<-moved
			}
		}
		input.EndInput()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/message")
}

func benchPartition(b *testing.B, name string) *buffer.Partition {
	b.Helper()
	p, err := buffer.Open(b.Context(), membuffer.NewStore(1<<20).Open(), buffer.Options{Name: name, MaxLength: 1 << 30, MaxInFlight: 1024})
	if err != nil {
		b.Fatal(err)
	}
	return p
}
