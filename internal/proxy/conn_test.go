package proxy

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/h2/frame"
)

// TestSmallDataIsJoined: DATA that follow each other on a stream share frames, no frame is larger than the peer takes, and each stream gets its own, in order.
func TestSmallDataIsJoined(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &conn{}
		c.peer.maxFrame = rapid.IntRange(10, 200).Draw(t, "largest frame")
		sent, ended := map[uint32][]byte{}, map[uint32]bool{}
		runs, size, last := 0, 0, uint32(0) // of what could be joined
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			id := rapid.Uint32Range(1, 3).Draw(t, "stream")
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 { // something else in between
				c.out = frame.AppendWindowUpdate(c.out, id, 7)
				last = 0
				continue
			}
			if ended[id] {
				continue
			}
			p := bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(t, "byte"))}, rapid.IntRange(0, c.peer.maxFrame).Draw(t, "size"))
			end := rapid.IntRange(0, 7).Draw(t, "end") == 0
			c.appendData(id, p, end)
			sent[id] = append(sent[id], p...)
			ended[id] = end
			if id != last || size+len(p) > c.peer.maxFrame {
				runs, size = runs+1, 0
			}
			if size, last = size+len(p), id; end {
				last = 0
			}
		}
		frames := 0
		got, over := map[uint32][]byte{}, map[uint32]bool{}
		for b := c.out; len(b) > 0; {
			h := frame.ParseHeader(b)
			payload := b[frame.HeaderLen : frame.HeaderLen+h.Length]
			b = b[frame.HeaderLen+h.Length:]
			if h.Type != frame.Data {
				continue
			}
			frames++
			if h.Length > c.peer.maxFrame || over[h.Stream] {
				t.Fatalf("a frame of %d bytes of %d, after the end %v", h.Length, c.peer.maxFrame, over[h.Stream])
			}
			got[h.Stream], over[h.Stream] = append(got[h.Stream], payload...), h.Has(frame.EndStream)
		}
		for id := range sent {
			if !bytes.Equal(got[id], sent[id]) || over[id] != ended[id] {
				t.Fatalf("stream %d: %d bytes of %d, or others; ended %v, want %v", id, len(got[id]), len(sent[id]), over[id], ended[id])
			}
		}
		if frames > runs {
			t.Fatalf("%d frames, %d would do", frames, runs)
		}
	})
}
