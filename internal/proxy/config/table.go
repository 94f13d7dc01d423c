package config

import (
	"slices"
	"strings"
)

// Table finds the route of a request. It is made once and then only read, by any number of goroutines.
//
// The most specific route wins: one for the service and method, then for the service, then for the longest prefix of the service, then one for
// everything. Among those for the same calls, one for the authority with its port comes before one for the authority alone, that before the
// one with the longest end of it (*.example.com), and that before one for all. Among those for the same authority, one for the listener comes before one for all.
type Table struct {
	methods  map[string]choice // by service/method
	services map[string]choice
	prefixes []prefix // sorted by text
	rest     choice
}

// choice is what the authority decides between.
type choice struct {
	all         *Route
	authorities map[string]*Route // by host or host:port, in lower case; nil when there are none
	ends        map[string]*Route // by .example.com or .example.com:port, in lower case; nil when there are none
}

// prefix of services. shorter is the position of the longest other prefix that it starts with, or -1.
type prefix struct {
	text string // with the dot, without the star
	choice
	shorter int
}

// CompileAll makes the table of each listener that routes name, and of all others, for whose names there is none.
func (c *Config) CompileAll() (others *Table, named map[string]*Table) {
	for i := range c.Routes {
		if name := c.Routes[i].Match.Listener; name != "" && named[name] == nil {
			if named == nil {
				named = map[string]*Table{}
			}
			named[name] = c.compile(name)
		}
	}
	return c.compile(""), named
}

// Compile makes the table of listeners without routes of their own. The routes it gives are those in c.Routes, which must stay as they are.
func (c *Config) Compile() *Table { return c.compile("") }

func (c *Config) compile(listener string) *Table {
	t := &Table{methods: map[string]choice{}, services: map[string]choice{}}
	prefixes := map[string]choice{}
	var routes []*Route
	for i := range c.Routes { // those of the listener first: with keeps the first of two
		if name := c.Routes[i].Match.Listener; name != "" && name == listener {
			routes = append(routes, &c.Routes[i])
		}
	}
	for i := range c.Routes {
		if c.Routes[i].Match.Listener == "" {
			routes = append(routes, &c.Routes[i])
		}
	}
	for _, r := range routes {
		m := r.Match
		start, isPrefix := strings.CutSuffix(m.Service, "*")
		switch {
		case m.Method != "":
			key := m.Service + "/" + m.Method
			t.methods[key] = t.methods[key].with(r)
		case isPrefix:
			prefixes[start] = prefixes[start].with(r)
		case m.Service != "":
			t.services[m.Service] = t.services[m.Service].with(r)
		default:
			t.rest = t.rest.with(r)
		}
	}
	for text, c := range prefixes {
		t.prefixes = append(t.prefixes, prefix{text: text, choice: c, shorter: -1})
	}
	slices.SortFunc(t.prefixes, func(a, b prefix) int { return strings.Compare(a.text, b.text) })
	for i := range t.prefixes {
		if i > 0 {
			t.prefixes[i].shorter = t.longest(i-1, t.prefixes[i].text)
		}
	}
	return t
}

func (c choice) with(r *Route) choice {
	a := strings.ToLower(r.Match.Authority)
	if end, ok := strings.CutPrefix(a, "*"); ok {
		if c.ends == nil {
			c.ends = map[string]*Route{}
		}
		if c.ends[end] == nil {
			c.ends[end] = r
		}
		return c
	}
	switch {
	case a == "" && c.all == nil:
		c.all = r
	case a != "" && c.authorities == nil:
		c.authorities = map[string]*Route{a: r}
	case a != "" && c.authorities[a] == nil:
		c.authorities[a] = r
	}
	return c // Validate refuses a second route for the same, unless one of them names the listener
}

// Route is the route of a request, or nil when there is none. path is :path as it came: /service/method.
func (t *Table) Route(authority, path string) *Route {
	var service, method string
	if slash := strings.LastIndexByte(path, '/'); slash > 0 && path[0] == '/' {
		service, method = path[1:slash], path[1:]
	}
	if service == "" {
		return t.rest.choose(authority)
	}
	if c, ok := t.methods[method]; ok {
		if r := c.choose(authority); r != nil {
			return r
		}
	}
	if c, ok := t.services[service]; ok {
		if r := c.choose(authority); r != nil {
			return r
		}
	}
	if len(t.prefixes) > 0 {
		after, found := slices.BinarySearchFunc(t.prefixes, service, comparePrefix)
		if !found {
			after--
		}
		for i := t.longest(after, service); i >= 0; i = t.prefixes[i].shorter {
			if r := t.prefixes[i].choose(authority); r != nil {
				return r
			}
		}
	}
	return t.rest.choose(authority)
}

func comparePrefix(p prefix, s string) int { return strings.Compare(p.text, s) }

// longest is the position of the longest prefix of s, given the position of the last text that is not after s. Every prefix of s is a prefix of
// that text too, because whatever is sorted between a prefix of s and s starts with that prefix.
func (t *Table) longest(i int, s string) int {
	for i >= 0 && !strings.HasPrefix(s, t.prefixes[i].text) {
		i = t.prefixes[i].shorter
	}
	return i
}

// longestAuthority is that of a DNS name with its dot and a port. A longer one is no name that a route could have.
const longestAuthority = 254 + len(":65535")

func (c choice) choose(authority string) *Route {
	if c.authorities == nil && c.ends == nil || len(authority) > longestAuthority {
		return c.all
	}
	// On the stack: converting it to look it up in the map makes no copy.
	var buffer [longestAuthority]byte
	lower := buffer[:len(authority)]
	port := -1
	for i := range lower {
		b := authority[i]
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		switch b {
		case ':':
			port = i
		case ']': // the colons before belong to an IPv6 address
			port = -1
		}
		lower[i] = b
	}
	if r := c.authorities[string(lower)]; r != nil {
		return r
	}
	if port >= 0 {
		if r := c.authorities[string(lower[:port])]; r != nil {
			return r
		}
	}
	if c.ends == nil {
		return c.all
	}
	host := len(lower)
	if port >= 0 {
		host = port
	}
	for i := 1; i < host; i++ { // from the longest end, each of which begins with a dot
		if lower[i] != '.' {
			continue
		}
		if r := c.ends[string(lower[i:])]; r != nil {
			return r
		}
		if r := c.ends[string(lower[i:host])]; r != nil {
			return r
		}
	}
	return c.all
}
