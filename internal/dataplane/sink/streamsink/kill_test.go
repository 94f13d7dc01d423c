package streamsink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
)

// The child process writes three lanes from their floors on, and says what was confirmed, until it is killed.
const (
	childPath   = "LEVADA_STREAMSINK_CHILD"
	childFloors = "LEVADA_STREAMSINK_FLOORS"
	childListen = "LEVADA_STREAMSINK_LISTEN"
	childLanes  = 3
)

type confirmed struct {
	Lane int
	Hi   uint64
}

func laneName(i int) string {
	if i == childLanes-1 {
		return "byid/0"
	}
	return fmt.Sprintf("in/%d", i)
}

func child(path string) {
	var floors [childLanes]uint64
	if err := json.Unmarshal([]byte(os.Getenv(childFloors)), &floors); err != nil {
		panic(err)
	}
	w, err := New(context.Background(), Config{Path: path, Name: "out", Listen: os.Getenv(childListen)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var lanes sync.WaitGroup
	for i, floor := range floors {
		lanes.Go(func() {
			for lo := floor + 1; ; {
				hi := lo + rand.Uint64N(20) // another grouping in each life
				if _, err := w.Write(context.Background(), sinktest.Block(laneName(i), lo, hi, floor)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Printf("{\"Lane\":%d,\"Hi\":%d}\n", i, hi)
				mu.Unlock()
				lo = hi + 1
				if rand.IntN(4) == 0 {
					floor = lo - 1
				}
			}
		})
	}
	lanes.Wait()
}

// The sink is killed again and again while it writes, and while a reader follows: the reader has each message once, and those of a lane in their order.
func TestSurvivesKill(t *testing.T) {
	kills := 40
	if testing.Short() {
		kills = 8
	}
	path := filepath.Join(t.TempDir(), "log.sqlite")
	address := testserver.FreeAddress(t)

	var got []string // what the reader has; it belongs to the goroutine until that is done
	var reading sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer reading.Wait()
	defer stop()
	r := reader(t, address, stream.Checkpoint{}, stream.ReaderConfig{NoProgress: -1})
	var failed error
	var mu sync.Mutex
	reading.Go(func() {
		for {
			d, err := r.Next(ctx)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				if ctx.Err() == nil {
					failed = err
				}
				return
			}
			mu.Lock()
			for _, record := range d.Records {
				got = append(got, string(record.Value))
			}
			mu.Unlock()
		}
	})

	var floors, done [childLanes]uint64
	for life := range kills {
		for i := range floors { // what is written again begins anywhere between the last floor and what was confirmed
			floors[i] += rand.Uint64N(done[i] - floors[i] + 1)
			if done[i] > floors[i]+200 {
				floors[i] = done[i] - 200
			}
		}
		env, _ := json.Marshal(floors)
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), childPath+"="+path, childFloors+"="+string(env), childListen+"="+address)
		c.Stderr = os.Stderr
		out, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		enough := 1 + rand.IntN(60) // confirmations; then it dies within the next moments
		scan := bufio.NewScanner(out)
		n := 0
		for scan.Scan() {
			var said confirmed
			if err := json.Unmarshal(scan.Bytes(), &said); err != nil {
				break // killed while it wrote
			}
			done[said.Lane] = max(done[said.Lane], said.Hi)
			if n++; n == enough {
				time.AfterFunc(rand.N(4*time.Millisecond), func() { _ = c.Process.Kill() })
			}
		}
		if exit, ok := errors.AsType[*exec.ExitError](c.Wait()); !ok || exit.Success() || exit.Exited() {
			t.Fatalf("life %d ended by itself: %v", life, exit)
		}
	}
	// A last life without a kill writes up to an agreed end.
	w := open(t, Config{Path: path, Listen: address})
	for i := range floors {
		write(t, w, sinktest.Block(laneName(i), floors[i]+1, done[i]+300, floors[i]))
	}
	_, last, _, _ := w.log.held()
	until(t, "the reader's catching up", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= int(last) || failed != nil })
	closed(t, w)
	stop()
	reading.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	next := map[string]uint64{}
	for _, value := range got {
		lane, pos, _ := cutLast(value)
		next[lane]++
		if want := fmt.Sprint(next[lane]); pos != want {
			t.Fatalf("%s/%s came where %s was to come", lane, pos, want)
		}
	}
	total := 0
	for i := range floors {
		if n := next[laneName(i)]; n < done[i]+300 {
			t.Errorf("%s: %d messages came, and %d were written", laneName(i), n, done[i]+300)
		}
		total += int(next[laneName(i)])
	}
	if total != len(got) || total != int(last) {
		t.Errorf("%d messages came, %d of known lanes, and the log has %d", len(got), total, last)
	}
	t.Logf("%d kills, %d messages, none lost, none twice", kills, total)
}

func cutLast(value string) (lane, pos string, ok bool) {
	i := strings.LastIndexByte(value, '/')
	return value[:i], value[i+1:], i >= 0
}
