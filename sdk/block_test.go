package sdk

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	functionv1 "github.com/levada-io/levada/proto/levada/function/v1"
)

type blockClient = grpc.BidiStreamingClient[functionv1.MapBlock, functionv1.MapBlockResult]

func openBlocks(t testing.TB, conn *grpc.ClientConn) blockClient {
	t.Helper()
	return must(functionv1.NewBlockMapClient(conn).MapFn(t.Context()))(t)
}

func blockOf(id uint64, values ...string) *functionv1.MapBlock {
	b := &functionv1.MapBlock{Id: id}
	for i, value := range values {
		b.Messages = append(b.Messages, &functionv1.MapMessage{Id: strconv.Itoa(i), Value: []byte(value)})
	}
	return b
}

// collect receives outcomes until it has so many of each block, and fails on one that comes twice.
func collect(t testing.TB, stream blockClient, sizes map[uint64]int) map[uint64][]*functionv1.MapOutcome {
	t.Helper()
	got, left := map[uint64][]*functionv1.MapOutcome{}, 0
	for id, size := range sizes {
		got[id] = make([]*functionv1.MapOutcome, size)
		left += size
	}
	for left > 0 {
		result := must(stream.Recv())(t)
		for i, outcome := range result.GetOutcomes() {
			at := &got[result.GetId()][int(result.GetFirst())+i]
			if *at != nil {
				t.Fatalf("block %d has two outcomes of message %d", result.GetId(), int(result.GetFirst())+i)
			}
			*at = outcome
			left--
		}
	}
	return got
}

func announced(t testing.TB, file string) (words []uint64) {
	t.Helper()
	content := must(os.ReadFile(file))(t)
	for ; len(content) >= 8; content = content[8:] {
		if word := binary.LittleEndian.Uint64(content); word != 0 {
			words = append(words, word)
		}
	}
	return words
}

// Errors and panics are outcomes of single messages; the rest of the block, and the process, go on.
func TestBlockOutcomes(t *testing.T) {
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		switch string(m.Value) {
		case "error":
			return nil, errors.New("no such account")
		case "silent":
			return nil, errors.New("")
		case "panic":
			panic("boom")
		case "filter":
			return nil, nil
		case "bad":
			return []Result{{Tags: []string{"\xff"}}}, nil
		case "huge":
			return []Result{{Value: make([]byte, 64<<20)}}, nil
		}
		return []Result{{Value: m.Value, Keys: []string{m.ID}}, {}}, nil
	}))
	stream := openBlocks(t, r.conn)
	for round := range uint64(3) {
		values := []string{"a", "error", "panic", "filter", "bad", "silent", "huge", "z"}
		ok(t, stream.Send(blockOf(round, values...)))
		got := collect(t, stream, map[uint64]int{round: len(values)})[round]
		if len(got[0].GetResults()) != 2 || string(got[0].GetResults()[0].GetValue()) != "a" || got[0].GetResults()[0].GetKeys()[0] != "0" {
			t.Errorf("a: %v", got[0])
		}
		if got[1].GetError() != "no such account" || got[1].GetStack() != "" {
			t.Errorf("error: %v", got[1])
		}
		if got[2].GetError() != "panic: boom" || !strings.Contains(got[2].GetStack(), "block_test.go") {
			t.Errorf("panic: %v", got[2])
		}
		if len(got[3].GetResults()) != 0 || got[3].GetError() != "" {
			t.Errorf("filter: %v", got[3])
		}
		for _, i := range []int{4, 5, 6} {
			if got[i].GetError() == "" || len(got[i].GetResults()) > 0 {
				t.Errorf("%s: error %q", values[i], got[i].GetError())
			}
		}
		if string(got[7].GetResults()[0].GetValue()) != "z" {
			t.Errorf("z: %v", got[7])
		}
	}
	ok(t, stream.Send(&functionv1.MapBlock{Id: 9}))
	if empty := must(stream.Recv())(t); empty.GetId() != 9 || len(empty.GetOutcomes()) != 0 {
		t.Errorf("empty block: %v", empty)
	}
	ok(t, stream.CloseSend())
	_, err := stream.Recv()
	wantEOF(t, err)
}

// Calls that wait run in parallel, and one that hangs holds nobody's results back.
func TestBlockSlowCalls(t *testing.T) {
	release := make(chan struct{})
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		switch string(m.Value) {
		case "hang":
			<-release
		case "slow":
			time.Sleep(20 * time.Millisecond)
		}
		return []Result{{Value: m.Value}}, nil
	}))
	stream := openBlocks(t, r.conn)
	values := make([]string, 500)
	for i := range values {
		values[i] = "slow"
	}
	began := time.Now()
	ok(t, stream.Send(blockOf(1, values...)))
	ok(t, stream.Send(blockOf(2, values...)))
	collect(t, stream, map[uint64]int{1: 500, 2: 500})
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("1000 calls of 20 ms took %v", took)
	}

	values = []string{"hang", "a", "b", "slow", "c"}
	ok(t, stream.Send(blockOf(3, values...)))
	seen := 0
	for seen < 4 {
		result := must(stream.Recv())(t)
		if result.GetFirst() == 0 {
			t.Fatal("the message that hangs is answered")
		}
		seen += len(result.GetOutcomes())
	}
	close(release)
	if last := must(stream.Recv())(t); last.GetFirst() != 0 || len(last.GetOutcomes()) != 1 {
		t.Errorf("last: %v", last)
	}
}

func TestBlocksOfManySizes(t *testing.T) {
	r := start(t, mapEndpoint, mapper(func(_ context.Context, m Message) ([]Result, error) {
		return []Result{{Value: m.Value, Keys: m.Keys}}, nil
	}))
	stream := openBlocks(t, r.conn)
	sizes := map[uint64]int{}
	values := map[uint64]int{1: 0, 2: 127, 3: 128, 4: 16383, 5: 16384, 6: 100_000, 7: 3 << 20, 8: 1}
	go func() {
		for id, length := range values {
			b := &functionv1.MapBlock{Id: id}
			for range max(1, min(2000, (8<<20)/(length+1))) {
				b.Messages = append(b.Messages, &functionv1.MapMessage{Keys: []string{"k"}, Value: make([]byte, length)})
			}
			if stream.Send(b) != nil {
				return
			}
		}
	}()
	for id, length := range values {
		sizes[id] = max(1, min(2000, (8<<20)/(length+1)))
	}
	for id, outcomes := range collect(t, stream, sizes) {
		for i, outcome := range outcomes {
			if got := len(outcome.GetResults()[0].GetValue()); got != values[id] {
				t.Fatalf("message %d of block %d has %d bytes, want %d", i, id, got, values[id])
			}
		}
	}
}

// One worker announces each message before its call, and nothing afterwards.
func TestBlockAnnounce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "announce")
	ok(t, os.WriteFile(file, make([]byte, announceFileSize), 0o600))
	t.Setenv(envAnnounceFile, file)
	t.Setenv(envConcurrency, "1")
	var during [][]uint64
	r := start(t, mapEndpoint, mapper(func(context.Context, Message) ([]Result, error) {
		during = append(during, announced(t, file))
		return nil, nil
	}))
	stream := openBlocks(t, r.conn)
	ok(t, stream.Send(blockOf(77, "a", "b", "c")))
	collect(t, stream, map[uint64]int{77: 3})
	want := [][]uint64{{77<<20 | 1}, {77<<20 | 2}, {77<<20 | 3}}
	if diff := cmp.Diff(want, during); diff != "" {
		t.Error(diff)
	}
	if left := announced(t, file); len(left) > 0 {
		t.Errorf("announced %x after the block", left)
	}
}

func TestAnnounceFileMustBeLongEnough(t *testing.T) {
	file := filepath.Join(t.TempDir(), "announce")
	ok(t, os.WriteFile(file, make([]byte, announceFileSize-1), 0o600))
	t.Setenv(envAnnounceFile, file)
	if err := ServeMap(t.Context(), MapFunc(cat), WithSocketDir(t.TempDir())); err == nil {
		t.Error("a short announce file was accepted: storing to it would be fatal")
	}
	t.Setenv(envAnnounceFile, file+"-absent")
	start(t, mapEndpoint, mapper(cat))
}

func TestBlockRefusesWhatCannotBeAnnounced(t *testing.T) {
	r := start(t, mapEndpoint, mapper(cat))
	stream := openBlocks(t, r.conn)
	ok(t, stream.Send(blockOf(maxBlockID+1, "a")))
	_, err := stream.Recv()
	wantCode(t, err, codes.InvalidArgument)
}

// A platform that goes away in the middle leaves nothing behind (see TestMain), and the next one is served.
func TestBlockClientGoesAway(t *testing.T) {
	r := start(t, mapEndpoint, mapper(func(ctx context.Context, m Message) ([]Result, error) {
		if string(m.Value) == "wait" {
			<-ctx.Done()
		}
		return nil, nil
	}))
	ctx, cancel := context.WithCancel(t.Context())
	stream := must(functionv1.NewBlockMapClient(r.conn).MapFn(ctx))(t)
	ok(t, stream.Send(blockOf(1, "wait", "wait", "a", "a")))
	time.Sleep(5 * time.Millisecond)
	cancel()
	next := openBlocks(t, r.conn)
	ok(t, next.Send(blockOf(1, "a")))
	collect(t, next, map[uint64]int{1: 1})
}
