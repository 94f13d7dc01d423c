package pipelinecmd

import (
	"testing"

	"github.com/levada-io/levada/internal/standalone"
)

// TestBuffersAreNamedByPipelineAndVertex: the namespace and the partition can be left out. An error says how the buffer is named, with what there is.
func TestBuffersAreNamedByPipelineAndVertex(t *testing.T) {
	all := []standalone.BufferView{
		{Namespace: "default", Pipeline: "orders", Vertex: "price"}, {Namespace: "default", Pipeline: "orders", Vertex: "price", Partition: 1},
		{Namespace: "default", Pipeline: "orders", Vertex: "out"}, {Namespace: "default", Pipeline: "words", Vertex: "out"},
	}
	const form = "expected PIPELINE/VERTEX, with NAMESPACE/ before it or /PARTITION behind it where that is needed; levada buffers list shows them"
	for _, c := range []struct{ name, want string }{
		{"orders/price", "default/orders/price/0 default/orders/price/1"},
		{"orders/price/1", "default/orders/price/1"},
		{"default/words/out", "default/words/out/0"},
		{"default/words/out/0", "default/words/out/0"},
		{"price", "no buffer is called price: name it as PIPELINE/VERTEX, here orders/price"},
		{"out", "no buffer is called out: name it as PIPELINE/VERTEX, here orders/out or words/out"},
		{"orders", "no buffer is called orders: " + form},
		{"words/out/7", "no buffer is called words/out/7: " + form},
	} {
		chosen, err := matchBuffers(all, []string{c.name})
		got := ""
		for i := range chosen {
			if i > 0 {
				got += " "
			}
			got += chosen[i].Name()
		}
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
