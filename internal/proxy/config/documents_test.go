package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	yaml "go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	kyaml "sigs.k8s.io/yaml"

	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/strictyaml"
)

const examples = "../../../examples/proxy/"

// exampleText is the configuration of an example: the file itself, or what is in its ConfigMap.
func exampleText(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(file) == "sidecar.yaml" {
		return manifests(t, file)["ConfigMap"].(map[string]any)["data"].(map[string]any)["proxy.yaml"].(string)
	}
	return string(text)
}

func manifests(t *testing.T, file string) map[string]any {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	byKind := map[string]any{}
	for dec := yaml.NewDecoder(f); ; {
		var m map[string]any
		if dec.Decode(&m) != nil {
			return byKind
		}
		byKind[m["kind"].(string)] = m
	}
}

// field is a field of the configuration with its path, and [] for the elements of lists.
type field struct {
	path  string
	value string // the default
	leaf  bool
}

func fields(t reflect.Type) []field {
	v := reflect.New(t)
	if d, ok := v.Interface().(strictyaml.Defaulter); ok {
		d.SetDefaults()
	}
	return fieldsOf(v.Elem(), "")
}

func fieldsOf(v reflect.Value, path string) []field {
	var all []field
	for name, i := range strictyaml.Fields(v.Type()) {
		f, at := v.Field(i), strings.TrimPrefix(path+"."+name, ".")
		elements := func(t reflect.Type, at string) {
			for _, below := range fields(t) {
				below.path = at + "." + below.path
				all = append(all, below)
			}
		}
		switch value := f.Interface().(type) {
		case time.Duration:
			s := regexp.MustCompile(`(\D)0s$`).ReplaceAllString(value.String(), "$1")
			all = append(all, field{at, regexp.MustCompile(`h0m$`).ReplaceAllString(s, "h"), true})
		case []config.Network, []string:
			all = append(all, field{path: at})
		case []config.Code:
			all = append(all, field{at, strings.Trim(strings.ReplaceAll(fmt.Sprint(value), " ", ", "), "[]"), true})
		default:
			switch f.Kind() {
			case reflect.Struct:
				all = append(all, fieldsOf(f, at)...)
			case reflect.Pointer:
				all = append(all, field{path: at})
				elements(f.Type().Elem(), at)
			case reflect.Slice:
				n := ""
				if f.Len() == 1 {
					n = "one"
				}
				all = append(all, field{path: at, value: n})
				elements(f.Type().Elem(), at+"[]")
			default:
				all = append(all, field{at, fmt.Sprint(value), true})
			}
		}
	}
	return all
}

// required are the fields that Parse misses.
func required(t *testing.T) []string {
	_, err := config.Parse("", []byte("listeners: [{tls: {certificates: [{}]}}]\nbackends: [{}]\nroutes: [{backends: [{}], headers: {request: {set: [{}], add: [{}]}, response: {set: [{}], add: [{}]}}}]"))
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	var paths []string
	for _, p := range problems {
		if p.Message == "is missing" {
			paths = append(paths, strings.ReplaceAll(p.Path, "[0]", "[]"))
		}
	}
	return paths
}

// TestDocumentation holds docs/proxy-config.md against the types: each field has a row with its default, and there is no other row.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../../docs/proxy-config.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-zA-Z.\\[\\]]+)` \\| ([^|]*) \\| ([^|]*) \\|$").FindAllStringSubmatch(string(text), -1) {
		if rows[m[1]] != "" {
			t.Errorf("%s has two rows", m[1])
		}
		rows[m[1]] = m[2]
	}
	needed := required(t)
	if len(needed) < 4 {
		t.Errorf("only %v are required", needed)
	}
	for _, f := range fields(reflect.TypeFor[config.Config]()) {
		want := "`" + f.value + "`"
		switch {
		case f.path == "listeners[].address": // that of the default listener is in the row of listeners
			want = "required"
		case slices.Contains(needed, f.path):
			want = "required"
		case f.value == "":
			want = "none"
		case f.value == "one":
			want = "one"
		}
		if got, ok := rows[f.path]; !ok {
			t.Errorf("docs/proxy-config.md has no row | `%s` | %s | ... |", f.path, want)
		} else if got != want {
			t.Errorf("docs/proxy-config.md says that %s is %s by default, and it is %s", f.path, got, want)
		}
		delete(rows, f.path)
	}
	for path := range rows {
		t.Errorf("docs/proxy-config.md has a row for %s, which does not exist", path)
	}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		parse(t, block[1])
	}
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob(examples + "*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		parse(t, exampleText(t, file)).Compile()
	}
}

// TestFullExample finds every field in full.yaml, with its default where it has one.
func TestFullExample(t *testing.T) {
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(exampleText(t, examples+"full.yaml")), &root); err != nil {
		t.Fatal(err)
	}
	written := map[string]string{}
	var walk func(n *yaml.Node, at string)
	walk = func(n *yaml.Node, at string) {
		if _, twice := written[at]; !twice { // of the elements of lists, the first has everything
			written[at] = n.Value
			if n.Kind == yaml.SequenceNode {
				var values []string
				for _, c := range n.Content {
					values = append(values, c.Value)
				}
				written[at] = strings.Join(values, ", ")
			}
		}
		for i, c := range n.Content {
			switch {
			case n.Kind == yaml.SequenceNode:
				walk(c, at+"[]")
			case i%2 == 1:
				walk(c, strings.TrimPrefix(at+"."+n.Content[i-1].Value, "."))
			}
		}
	}
	walk(root.Content[0], "")
	for _, f := range fields(reflect.TypeFor[config.Config]()) {
		value, ok := written[f.path]
		if !ok {
			t.Errorf("full.yaml does not have %s", f.path)
		}
		if f.leaf && f.value != "" && value != f.value {
			t.Errorf("full.yaml has %s: %s, and the default is %s", f.path, value, f.value)
		}
	}
}

// TestSidecar holds what sidecar.yaml says in several places against each other. What comes later must have the time that it needs.
func TestSidecar(t *testing.T) {
	c := parse(t, exampleText(t, examples+"sidecar.yaml"))
	var deployment appsv1.Deployment
	var service corev1.Service
	for kind, into := range map[string]any{"Deployment": &deployment, "Service": &service, "ConfigMap": &corev1.ConfigMap{}} {
		text, err := yaml.Marshal(manifests(t, examples+"sidecar.yaml")[kind])
		if err != nil {
			t.Fatal(err)
		}
		if err := kyaml.UnmarshalStrict(text, into); err != nil {
			t.Fatal(kind, err)
		}
	}
	pod := deployment.Spec.Template.Spec
	proxy, server := pod.InitContainers[0], pod.Containers[0]
	if proxy.RestartPolicy == nil || *proxy.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the proxy is no sidecar")
	}
	started := slices.Concat(proxy.Command, proxy.Args)
	if want := []string{"levada-proxy", "--config", proxy.VolumeMounts[0].MountPath + "/proxy.yaml"}; !slices.Equal(started, want) {
		t.Errorf("the proxy is started with %v, want %v", started, want)
	}
	if drain := proxy.Lifecycle.PreStop.Exec.Command; !slices.Equal(drain, []string{"levada-proxy", "drain", "--admin", "127.0.0.1" + c.Admin.Address}) {
		t.Errorf("the proxy is drained by %v", drain)
	}
	for want, p := range map[string]*corev1.Probe{"/readyz": proxy.ReadinessProbe, "/livez": proxy.LivenessProbe} {
		if p.HTTPGet.Path != want || p.HTTPGet.Port.StrVal != "admin" {
			t.Errorf("a probe asks for %s of %s, and not for %s of admin", p.HTTPGet.Path, p.HTTPGet.Port.StrVal, want)
		}
	}
	if !reflect.DeepEqual(proxy.StartupProbe.HTTPGet, proxy.ReadinessProbe.HTTPGet) {
		t.Errorf("it has started with %v, and is ready with %v", proxy.StartupProbe.HTTPGet, proxy.ReadinessProbe.HTTPGet)
	}
	addresses := map[string]string{"grpc": c.Listeners[0].Address, "admin": c.Admin.Address}
	if target := service.Spec.Ports[0].TargetPort.StrVal; addresses[target] == "" {
		t.Errorf("the service leads to port %q", target)
	}
	for _, p := range proxy.Ports {
		if addresses[p.Name] != fmt.Sprintf(":%d", p.ContainerPort) {
			t.Errorf("port %s is %d, and the proxy listens on %q", p.Name, p.ContainerPort, addresses[p.Name])
		}
	}
	sleep := time.Duration(server.Lifecycle.PreStop.Sleep.Seconds) * time.Second
	grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
	if c.Drain.Notice+c.Drain.Period >= sleep || sleep+10*time.Second >= grace {
		t.Errorf("notice %s + period %s < the server's sleep %s; that + its own 10 s < grace %s", c.Drain.Notice, c.Drain.Period, sleep, grace)
	}
}
