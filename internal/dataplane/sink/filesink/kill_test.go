package filesink

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
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
)

// The child process writes three lanes from their floors on, and says what was confirmed, until it is killed.
const (
	childPath   = "LEVADA_FILESINK_CHILD"
	childFloors = "LEVADA_FILESINK_FLOORS"
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
	w, err := New(Config{Path: path})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	w.compactAt = w.journalEnd + 500 // so that the kill meets it now and then
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

func TestSurvivesKill(t *testing.T) {
	kills := 60
	if testing.Short() {
		kills = 10
	}
	path := filepath.Join(t.TempDir(), "out")
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
		c.Env = append(os.Environ(), childPath+"="+path, childFloors+"="+string(env))
		c.Stderr = os.Stderr
		out, err := c.StdoutPipe()
		must(t, err)
		must(t, c.Start())
		enough := 1 + rand.IntN(60) // confirmations; then it dies within the next moments
		scan := bufio.NewScanner(out)
		n := 0
		for scan.Scan() {
			var got confirmed
			if err := json.Unmarshal(scan.Bytes(), &got); err != nil {
				break // killed while it wrote
			}
			done[got.Lane] = max(done[got.Lane], got.Hi)
			if n++; n == enough {
				time.AfterFunc(rand.N(4*time.Millisecond), func() { _ = c.Process.Kill() })
			}
		}
		if exit, ok := errors.AsType[*exec.ExitError](c.Wait()); !ok || exit.Success() || exit.Exited() {
			t.Fatalf("life %d ended by itself: %v", life, exit)
		}
	}
	// A last life without a kill writes up to an agreed end.
	w := reopen(t, Config{Path: path})
	total := uint64(0)
	for i := range floors {
		end := done[i] + 300
		write(t, w, laneName(i), floors[i]+1, end, floors[i])
		total += end
		done[i] = end
	}
	must(t, w.Close(t.Context()))
	for i := range floors {
		wantLane(t, path, laneName(i), max(done[i], highest(t, path, laneName(i))))
	}
	t.Logf("%d kills, %d messages, none lost, none twice", kills, total)
}

// highest is the highest position of the lane in the file: a commit may have been cut off before it was confirmed.
func highest(t *testing.T, path, lane string) (hi uint64) {
	for _, line := range lines(t, path) {
		var p uint64
		if n, _ := fmt.Sscanf(line, lane+"/%d", &p); n == 1 {
			hi = max(hi, p)
		}
	}
	return hi
}
