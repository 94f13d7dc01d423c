package jetstream

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/testnats"
)

func TestAMoveMakesServersMoreEven(t *testing.T) {
	on := func(leaders ...string) (all []led) {
		for i, leader := range leaders {
			followers := slices.DeleteFunc([]string{"n1", "n2", "n3"}, func(n string) bool { return n == leader })
			all = append(all, led{fmt.Sprint("s", i), leader, followers, true})
		}
		return all
	}
	sick := on("n1", "n1", "n1")
	sick[2].healthy = false
	for name, c := range map[string]struct {
		all  []led
		ours []string
		want string
	}{
		"even":                             {on("n1", "n2", "n3", "n1"), []string{"s0", "s1", "s2", "s3"}, ""},
		"one leads two more than another":  {on("n1", "n2", "n1"), []string{"s0", "s1", "s2"}, "s0 n1 n3"},
		"the server that leads fewest":     {on("n1", "n1", "n1", "n1", "n2"), []string{"s0", "s1"}, "s0 n1 n3"},
		"only ours":                        {on("n1", "n1", "n1"), []string{"s2"}, "s2 n1 n2"},
		"none of ours is on that server":   {on("n1", "n1", "n1", "n2"), []string{"s3"}, ""},
		"a stream of another is not whole": {sick, []string{"s0"}, ""},
	} {
		m, _, ok := chooseMove(c.all, func(stream string) bool { return slices.Contains(c.ours, stream) })
		got := strings.TrimSpace(m.stream + " " + m.from + " " + m.to)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestLeadersAreSpreadOverTheServers: all leaders are on one server, as after a rolling restart. Two processes, with streams of which each sees some, spread them evenly with no move
// more than needed, while one writes. The longest write is logged.
func TestLeadersAreSpreadOverTheServers(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	log := &lines{}
	var moves atomic.Int32
	connect := func(keep bool) *Service {
		t.Helper()
		s, err := Connect(t.Context(), Config{
			URL: c.URL(), KeepLeaders: keep, LeaderMoved: func() { moves.Add(1) }, Logger: slog.New(slog.NewTextHandler(log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		if s.watch.balance != nil {
			s.watch.balance.after, s.watch.balance.every = time.Second, time.Second
		}
		t.Cleanup(s.Close)
		return s
	}
	open := func(s *Service, vertices ...string) {
		t.Helper()
		_, err := isb.Retry(t.Context(), s, slog.New(slog.DiscardHandler), "the store", func(ctx context.Context) (struct{}, error) {
			store, err := s.Open(ctx, isb.Request{Owner: naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "rivers"}})
			for _, v := range vertices {
				if err == nil {
					_, err = store.OpenPartition(ctx, v, 0, isb.Settings{})
				}
			}
			return struct{}{}, err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	open(connect(true), "a", "b", "c", "d", "e")
	js := c.Connect()
	counts := func() map[string]int {
		t.Helper()
		counts := map[string]int{}
		list := js.ListStreams(t.Context())
		for info := range list.Info() {
			counts[info.Cluster.Leader]++
		}
		return counts
	}
	lead := func(server string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); counts()[server] != 6; time.Sleep(100 * time.Millisecond) {
			list := js.ListStreams(t.Context())
			for info := range list.Info() {
				if info.Cluster.Leader != server {
					_ = stepDown(t.Context(), js.Conn(), move{info.Config.Name, info.Cluster.Leader, server}) // tried again
				}
			}
			if time.Now().After(end) {
				t.Fatalf("leaders: %v", counts())
			}
		}
	}
	lead("n2")
	writing, stop := context.WithCancel(t.Context())
	var longest time.Duration
	var writer sync.WaitGroup
	stream := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "rivers"}.Buffer("a", 0)
	writer.Go(func() {
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		for writing.Err() == nil {
			<-pace.C
			began := time.Now()
			attempt, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, _ = js.Publish(attempt, stream, []byte("x")) // tried again, as writers do
			cancel()
			longest = max(longest, time.Since(began))
		}
	})
	defer writer.Wait()
	defer stop()
	open(connect(false), "a", "b", "c")
	open(connect(false), "d", "e")
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		now := counts()
		if all := slices.Collect(maps.Values(now)); len(all) == 3 && slices.Max(all)-slices.Min(all) <= 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("leaders: %v, moves: %d\n%s", now, moves.Load(), log)
		}
	}
	stop()
	writer.Wait()
	t.Logf("%v after %d moves; the longest write took %v", counts(), moves.Load(), longest.Round(time.Millisecond))
	if n := moves.Load(); n < 4 || n > 6 {
		t.Errorf("%d moves, want 4, and two more if both processes moved one at the same time", n)
	}
	if n := strings.Count(log.String(), "leader of a stream moved"); n != int(moves.Load()) {
		t.Errorf("%d moves are logged: %s", n, log)
	}
}
