package flow_test

import (
	"os"
	"reflect"
	"testing"

	"github.com/levada-io/levada/internal/flow"
)

// TestBlocksOfEarlierVersionsAreRead: the files of testdata were written by the version before watermarks were read. A buffer may hold such blocks for as long as a
// pipeline stands still, so the files are not to be replaced.
func TestBlocksOfEarlierVersionsAreRead(t *testing.T) {
	for _, kind := range kinds {
		data, err := os.ReadFile("testdata/block-v1-" + kind.String() + ".bin")
		if err != nil {
			t.Fatal(err)
		}
		b, err := flow.Decode(data)
		if err != nil || !reflect.DeepEqual(plain(b), plain(sample())) || b.Watermark != flow.NoWatermark {
			t.Errorf("%v: %+v, %v", kind, b, err)
		}
	}
	stored, err := os.ReadFile("testdata/block-v1-none.bin")
	if err != nil {
		t.Fatal(err)
	}
	if now, err := flow.Encode(sample(), flow.None); err != nil || string(now) != string(stored) {
		t.Errorf("the same block is other bytes now, and readers of the earlier version would have to read them: %x, %v", now, err)
	}
}
