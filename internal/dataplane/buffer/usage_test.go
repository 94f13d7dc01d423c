package buffer

import (
	"testing"

	"pgregory.net/rapid"
)

// TestEachMessageCountsOnce gives a count what happens to blocks of this process and of others, in any order in which it may become known: the receipt of a write may
// come before or after the block is read, may be lost, or may say that the block was there before; the log may be followed or not.
func TestEachMessageCountsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := newUsage(newRoom(1 << 30))
		count := rapid.IntRange(1, 8).Draw(t, "blocks")
		type block struct {
			messages       int
			ours, settled  bool
			read, followed bool
			done           int
		}
		blocks := make([]block, count)
		for i := range blocks {
			blocks[i] = block{messages: rapid.IntRange(0, 5).Draw(t, "messages"), ours: rapid.Bool().Draw(t, "ours")}
			if blocks[i].ours {
				u.submitted(blocks[i].messages)
			}
		}
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			seq := rapid.IntRange(1, count).Draw(t, "block")
			b := &blocks[seq-1]
			switch rapid.SampledFrom([]string{"settle", "settle", "lose the receipt", "follow", "read", "read", "done"}).Draw(t, "event") {
			case "settle":
				if b.ours && !b.settled {
					b.settled = true
					u.settled(uint64(seq), b.messages)
				}
			case "lose the receipt":
				if b.ours && !b.settled {
					b.settled = true
					u.settled(0, b.messages)
				}
			case "follow":
				b.followed = true
				u.stored(uint64(seq), b.messages)
			case "read":
				if !b.read && (seq == 1 || blocks[seq-2].read) {
					b.read = true
					u.read(uint64(seq), b.messages)
				}
			case "done":
				if b.read && b.done < b.messages {
					n := rapid.IntRange(1, b.messages-b.done).Draw(t, "done")
					b.done += n
					u.done(n)
				}
			}
			if u.pending.Load() < 0 {
				t.Fatalf("%d pending", u.pending.Load())
			}
		}
		// In the end all is known.
		want := 0
		for i := range blocks {
			b := &blocks[i]
			if b.ours && !b.settled {
				u.settled(uint64(i+1), b.messages)
			}
			if !b.read {
				u.read(uint64(i+1), b.messages)
			}
			want += b.messages - b.done
		}
		if got := int(u.pending.Load()); got != want {
			t.Fatalf("%d pending, want %d", got, want)
		}
	})
}

// TestSavedProgressCountsOnce gives a writer elsewhere entries and saved states in any order, as two subscriptions do.
func TestSavedProgressCountsOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := newUsage(newRoom(1 << 30))
		count := rapid.IntRange(1, 8).Draw(t, "blocks")
		messages := make([]int, count)
		for i := range messages {
			messages[i] = rapid.IntRange(1, 5).Draw(t, "messages")
		}
		floor := 0
		part := map[uint64]progress{}
		for range rapid.IntRange(0, 40).Draw(t, "events") {
			switch rapid.SampledFrom([]string{"stored", "saved", "part"}).Draw(t, "event") {
			case "stored":
				seq := rapid.IntRange(1, count).Draw(t, "block")
				u.stored(uint64(seq), messages[seq-1])
			case "saved":
				floor = rapid.IntRange(floor, count).Draw(t, "floor")
				u.saved(uint64(floor), part)
			case "part":
				if seq := rapid.IntRange(1, count).Draw(t, "block"); seq > floor {
					part = map[uint64]progress{uint64(seq): {all: rapid.Bool().Draw(t, "all")}}
					u.saved(uint64(floor), part)
				}
			}
		}
		want := 0
		for i, n := range messages {
			u.stored(uint64(i+1), n)
			if i+1 > floor && !part[uint64(i+1)].all {
				want += n
			}
		}
		if got := int(u.pending.Load()); got != want {
			t.Fatalf("%d pending, want %d; floor %d, part %v", got, want, floor, part)
		}
	})
}
