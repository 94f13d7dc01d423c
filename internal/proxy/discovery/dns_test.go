package discovery

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers on a loopback address. Names that it does not know do not exist.
type nameServer struct {
	t    *testing.T
	conn net.PacketConn

	mu      sync.Mutex
	records map[string][]dnsmessage.ResourceBody // by name and type, as in "orders.test. A"
	codes   map[string]dnsmessage.RCode          // instead of records; silent for no answer
	asked   map[string]int
}

const silent dnsmessage.RCode = 0xfff

func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{t: t, conn: conn, records: map[string][]dnsmessage.ResourceBody{}, codes: map[string]dnsmessage.RCode{}, asked: map[string]int{}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		packet := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if answer := s.answer(packet[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from) // who asked may be gone
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return s
}

func (s *nameServer) answer(packet []byte) []byte {
	var asked dnsmessage.Message
	if err := asked.Unpack(packet); err != nil || len(asked.Questions) != 1 {
		s.t.Errorf("a question that cannot be read: %v", err)
		return nil
	}
	question := asked.Questions[0]
	name := question.Name.String()
	key := name + " " + strings.TrimPrefix(question.Type.String(), "Type")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[key]++
	answer := dnsmessage.Message{Questions: asked.Questions, Header: dnsmessage.Header{ID: asked.ID, Response: true, Authoritative: true, RCode: s.codes[key]}}
	if answer.RCode == silent {
		return nil
	}
	known := false
	for k := range s.records {
		known = known || strings.HasPrefix(k, name+" ")
	}
	if !known && answer.RCode == 0 {
		answer.RCode = dnsmessage.RCodeNameError
	}
	if answer.RCode == 0 {
		for _, body := range s.records[key] {
			answer.Answers = append(answer.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: dnsmessage.ClassINET, TTL: 1}, Body: body})
		}
	}
	packed, err := answer.Pack()
	if err != nil {
		s.t.Error(err)
	}
	return packed
}

// set makes the addresses of a name these.
func (s *nameServer) set(name string, ips ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[name+" A"], s.records[name+" AAAA"] = nil, nil
	for _, ip := range ips {
		if address := netip.MustParseAddr(ip); address.Is4() {
			s.records[name+" A"] = append(s.records[name+" A"], &dnsmessage.AResource{A: address.As4()})
		} else {
			s.records[name+" AAAA"] = append(s.records[name+" AAAA"], &dnsmessage.AAAAResource{AAAA: address.As16()})
		}
	}
}

func (s *nameServer) setServices(name string, services ...dnsmessage.SRVResource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[name+" SRV"] = nil
	for _, service := range services {
		s.records[name+" SRV"] = append(s.records[name+" SRV"], &service)
	}
}

func (s *nameServer) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range []string{" A", " AAAA", " SRV"} {
		delete(s.records, name+kind)
	}
}

// fail answers a question with a code; 0 is as before.
func (s *nameServer) fail(key string, code dnsmessage.RCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.codes[key] = code
}

// questions waits until so many more were asked.
func (s *nameServer) questions(key string, more int) {
	s.t.Helper()
	count := func() int { s.mu.Lock(); defer s.mu.Unlock(); return s.asked[key] }
	before := count()
	eventually(s.t, fmt.Sprintf("%d questions for %s", more, key), func() bool { return count() >= before+more })
}

func (s *nameServer) options(o Options) Options {
	o.Interval = 20 * time.Millisecond
	o.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, s.conn.LocalAddr().String())
		if err != nil {
			return nil, err
		}
		return hasty{conn.(*net.UDPConn)}, nil
	}}
	return o
}

// hasty waits for an answer no longer than a while: net.Resolver leaves a question that was given up waiting for its own five seconds.
type hasty struct{ *net.UDPConn }

func (h hasty) SetDeadline(t time.Time) error {
	if soon := time.Now().Add(200 * time.Millisecond); t.IsZero() || t.After(soon) {
		t = soon
	}
	return h.UDPConn.SetDeadline(t)
}

func TestDNS(t *testing.T) {
	server := startNameServer(t)
	server.set("orders.test.", "10.0.0.2", "10.0.0.1", "2001:db8::1")
	source, lists := follow(t, "dns:///orders.test.:9000", server.options(Options{EmptyAfter: 1 << 30}))
	next(t, lists, "10.0.0.1:9000", "10.0.0.2:9000", "[2001:db8::1]:9000")
	server.set("orders.test.", "10.0.0.1", "10.0.0.2", "2001:db8::1")
	server.questions("orders.test. AAAA", 3)
	server.set("orders.test.", "10.0.0.3")
	next(t, lists, "10.0.0.3:9000")

	failing := func(what string) func() bool {
		return func() bool { s := source.Status(); return s.Failing && strings.Contains(s.LastError.Error(), what) }
	}
	server.forget("orders.test.")
	eventually(t, "a name that does not exist is an error", failing("does not exist"))
	server.set("orders.test.")
	eventually(t, "a name without addresses is an error", failing("has no records"))
	server.fail("orders.test. A", dnsmessage.RCodeServerFailure)
	server.fail("orders.test. AAAA", dnsmessage.RCodeServerFailure)
	eventually(t, "a name server that fails is an error", failing("server misbehaving"))
	if s := source.Status(); s.Endpoints != 1 || s.LastSuccess.IsZero() || len(lists) != 0 {
		t.Errorf("the list was not kept: %+v", s)
	}
	server.set("orders.test.", "10.0.0.4")
	server.fail("orders.test. A", 0)
	next(t, lists, "10.0.0.4:9000") // though IPv6 still fails
	if !source.Status().Failing {
		t.Error("half of the addresses cannot be found, and that is no error")
	}
	server.fail("orders.test. AAAA", 0)
	eventually(t, "all is well again", func() bool { return !source.Status().Failing })
}

// Of an address, and of what /etc/hosts has, there is often only one kind.
func TestDNSWithoutNameServer(t *testing.T) {
	for host, want := range map[string]string{"10.0.0.1": "10.0.0.1:80", "[::1]": "[::1]:80"} {
		source, lists := follow(t, "dns:///"+host+":80", Options{Resolver: &net.Resolver{PreferGo: true}})
		next(t, lists, want)
		if s := source.Status(); s.Failing {
			t.Errorf("%s: %v", host, s.LastError)
		}
	}
}

// When one kind of addresses cannot be asked for, those that are known stay, while the others change.
func TestDNSHalfFails(t *testing.T) {
	server := startNameServer(t)
	server.set("orders.test.", "10.0.0.1", "2001:db8::1", "2001:db8::2")
	_, lists := follow(t, "dns:///orders.test.:9000", server.options(Options{}))
	next(t, lists, "10.0.0.1:9000", "[2001:db8::1]:9000", "[2001:db8::2]:9000")
	server.fail("orders.test. AAAA", dnsmessage.RCodeServerFailure)
	server.questions("orders.test. AAAA", 3)
	server.set("orders.test.", "10.0.0.2")
	next(t, lists, "10.0.0.2:9000", "[2001:db8::1]:9000", "[2001:db8::2]:9000")
	server.fail("orders.test. AAAA", 0)
	next(t, lists, "10.0.0.2:9000")
}

func TestDNSNameServerThatIsSilent(t *testing.T) {
	server := startNameServer(t)
	server.set("orders.test.", "10.0.0.1")
	server.fail("orders.test. A", silent)
	source, lists := follow(t, "dns:///orders.test.:9000", server.options(Options{Timeout: 50 * time.Millisecond}))
	eventually(t, "no answer is an error", func() bool { return source.Status().Failing })
	server.fail("orders.test. A", 0)
	next(t, lists, "10.0.0.1:9000")
}

func TestServiceRecords(t *testing.T) {
	server := startNameServer(t)
	name := func(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }
	const service = "_grpc._tcp.orders.test."
	server.setServices(service,
		dnsmessage.SRVResource{Priority: 1, Port: 9001, Target: name("b.test.")},
		dnsmessage.SRVResource{Priority: 1, Port: 9000, Target: name("A.test.")},
		dnsmessage.SRVResource{Priority: 2, Port: 9000, Target: name("spare.test.")})
	source, lists := follow(t, "dns+srv:///"+service, server.options(Options{EmptyAfter: 2}))
	next(t, lists, "a.test:9000", "b.test:9001")
	server.setServices(service, dnsmessage.SRVResource{Priority: 2, Port: 9000, Target: name("spare.test.")})
	next(t, lists, "spare.test:9000")
	server.fail(service+" SRV", dnsmessage.RCodeServerFailure)
	eventually(t, "a name server that fails is an error", func() bool { return source.Status().Failing })
	server.questions(service+" SRV", 5)
	server.fail(service+" SRV", 0)
	eventually(t, "all is well again", func() bool { return !source.Status().Failing })
	if len(lists) != 0 {
		t.Errorf("the list was not kept: %v", <-lists)
	}
	server.setServices(service, dnsmessage.SRVResource{Port: 0, Target: name(".")}) // there is no such service
	next(t, lists)
	server.setServices(service, dnsmessage.SRVResource{Port: 9000, Target: name("a.test.")})
	next(t, lists, "a.test:9000")
}

// The set changes every 100 ms while some questions fail: no list is older than a second when it is replaced, none has what never was.
func TestDNSChangesAllTheTime(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 3 s")
	}
	server := startNameServer(t)
	var since [26]time.Time
	put := func(i int) {
		since[i] = time.Now()
		server.set("orders.test.", fmt.Sprintf("10.0.0.%d", i))
	}
	put(1)
	options := server.options(Options{})
	options.Interval = 100 * time.Millisecond
	_, lists := follow(t, "dns:///orders.test.:80", options)
	last := 0
	for i := 2; i <= 25; i++ {
		time.Sleep(100 * time.Millisecond)
		stalled := time.Since(since[i-1]) > 300*time.Millisecond // this machine, which has other things to do
		put(i)
		server.fail("orders.test. A", []dnsmessage.RCode{0, 0, dnsmessage.RCodeServerFailure}[i%3])
		for len(lists) > 0 {
			list := <-lists
			if _, err := fmt.Sscanf(strings.Join(list, " "), "10.0.0.%d:80", &last); err != nil || len(list) != 1 {
				t.Fatalf("%v is no list that was there", list)
			}
		}
		if !stalled && last > 0 && last < i-1 && time.Since(since[last+1]) > time.Second {
			t.Errorf("10.0.0.%d is still there, removed %v ago", last, time.Since(since[last+1]))
		}
	}
	server.fail("orders.test. A", 0)
	eventually(t, "the last list arrives", func() bool {
		for len(lists) > 0 {
			if list := <-lists; slices.Equal(list, []string{"10.0.0.25:80"}) {
				return true
			}
		}
		return false
	})
	if late := time.Since(since[25]); late > time.Second {
		t.Errorf("the last list came after %v", late)
	}
}

// scripted answers from a list, one for each look, and the last indefinitely.
type scripted struct {
	answers []any // []string or error
	looks   []time.Time
}

func (s *scripted) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if network != "ip4" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	s.looks = append(s.looks, time.Now())
	switch answer := s.answers[min(len(s.looks), len(s.answers))-1].(type) {
	case error:
		return nil, answer
	case []string:
		var list []netip.Addr
		for _, a := range answer {
			list = append(list, netip.MustParseAddr(a))
		}
		return list, nil
	}
	return nil, io.ErrUnexpectedEOF
}

func (s *scripted) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, io.ErrUnexpectedEOF
}

var (
	errNotFound = &net.DNSError{Err: "no such host", IsNotFound: true}
	errServer   = &net.DNSError{Err: "server misbehaving", IsTemporary: true}
)

// run lets a source look for a time and returns the lists with the second in which they came.
func (s *scripted) run(t *testing.T, o Options, seconds int) (lists []string, status Status) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s.looks = nil
		o.Resolver = s
		source, err := New("dns:///orders:80", quiet(o))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(seconds)*time.Second)
		defer cancel()
		if err := source.Run(ctx, func(list []string) {
			lists = append(lists, fmt.Sprintf("%.0fs %s", time.Since(start).Seconds(), strings.Join(list, " ")))
		}); err != nil {
			t.Error(err)
		}
		status = source.Status()
	})
	return lists, status
}

func TestDNSEmptyAnswersEmptyTheListAfterSome(t *testing.T) {
	repeat := func(answer any, times int) (all []any) {
		for range times {
			all = append(all, answer)
		}
		return all
	}
	one := []string{"10.0.0.1"}
	for _, c := range []struct {
		name    string
		answers []any
		want    int // lists
		empty   bool
		failing bool
	}{
		{"two are an accident", slices.Concat([]any{one}, repeat(errNotFound, 2), []any{one}, repeat(errNotFound, 2), []any{one}), 1, false, false},
		{"three are not", slices.Concat([]any{one}, repeat(errNotFound, 3), []any{one}), 3, false, false},
		{"and it stays empty", slices.Concat([]any{one}, repeat(errNotFound, 9)), 2, true, true},
		{"and it comes back", slices.Concat([]any{one}, repeat(errNotFound, 9), []any{one}), 3, false, false},
		{"an error says nothing", slices.Concat([]any{one}, repeat(errServer, 50)), 1, false, true},
		{"an error in between starts over", slices.Concat([]any{one}, repeat(errNotFound, 2), []any{errServer}, repeat(errNotFound, 2), []any{one}), 1, false, false},
		{"a name that never was", repeat(errNotFound, 1), 1, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			lists, status := (&scripted{answers: c.answers}).run(t, Options{}, 120)
			if len(lists) != c.want || (status.Endpoints == 0) != c.empty || status.Failing != c.failing {
				t.Errorf("lists %q, status %+v", lists, status)
			}
		})
	}
}

// Until something is known, looks follow each other sooner; then once in an interval, and not to the instant.
func TestDNSPace(t *testing.T) {
	s := &scripted{answers: []any{errServer, errServer, errServer, errServer, errServer, errServer, []string{"10.0.0.1"}}}
	lists, _ := s.run(t, Options{}, 1000)
	if diff := cmp.Diff(1, len(lists)); diff != "" {
		t.Fatal(lists)
	}
	gaps := map[time.Duration]bool{}
	for i := range s.looks[1:] {
		gap := s.looks[i+1].Sub(s.looks[i])
		want := min(250*time.Millisecond<<min(i, 9), 5*time.Second)
		if gap < want*9/10 || gap > want*11/10 {
			t.Errorf("look %d came %v after the one before, want %v", i+1, gap, want)
		}
		gaps[gap] = true
	}
	if len(gaps) < len(s.looks)/2 {
		t.Errorf("%d looks have only %d different gaps", len(s.looks), len(gaps))
	}
}

// A list that is doubted is asked for sooner, but not more than once a second, and an accident of the name server's stays one.
func TestDNSDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answers: []any{[]string{"10.0.0.1"}, []string{"10.0.0.1"}, []string{"10.0.0.2"}, errNotFound, errNotFound, errNotFound, errNotFound, []string{"10.0.0.2"}}}
		source, err := New("dns:///orders:80", quiet(Options{Resolver: s, Interval: 30 * time.Second}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var lists []string
		ended := make(chan error, 1)
		go func() {
			ended <- source.Run(ctx, func(list []string) { lists = append(lists, strings.Join(list, " ")) })
		}()
		start := time.Now()
		time.Sleep(35 * time.Second) // the second look is in its time
		for range 600 {
			time.Sleep(10 * time.Millisecond)
			source.(Doubter).Doubt()
		}
		time.Sleep(35 * time.Second)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		var at []string
		for _, look := range s.looks {
			at = append(at, fmt.Sprintf("%.0f", look.Sub(start).Seconds()))
		}
		if sooner := len(s.looks) - 3; sooner < 5 || sooner > 8 {
			t.Errorf("looks at the seconds %q, want about one in each of the 6 seconds with doubts", at)
		}
		if diff := cmp.Diff([]string{"10.0.0.1:80", "10.0.0.2:80"}, lists); diff != "" {
			t.Error(diff)
		}
	})
}

// A resolver that hangs does not keep Run from ending, nor from looking again.
func TestDNSResolverThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hanging := hangs{}
		source, err := New("dns:///orders:80", quiet(Options{Resolver: hanging}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- source.Run(ctx, func([]string) { t.Error("a list from nowhere") }) }()
		time.Sleep(20 * time.Second)
		if s := source.Status(); !s.Failing {
			t.Errorf("%+v", s)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

type hangs struct{ Resolver }

func (hangs) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
