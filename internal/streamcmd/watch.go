package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream/podwatch"
)

func newWatchCommand(version string) *cobra.Command {
	var (
		store                                              storeFlag
		notifier                                           notifierFlag
		log                                                commandline.LogFlags
		namespace, selector, kubeconfig, kubeContext, http string
		shared                                             bool
	)
	cmd := &cobra.Command{
		Use: "watch", Short: "Tell the job store of workers that Kubernetes knows to be dead", Args: cobra.NoArgs,
		Long: `Watch the pods of a namespace, and end the leases of workers that have died: their jobs are taken over within a second or two instead of when the
lease ends. Nothing depends on it, and any number of replicas may run. It needs get, list and watch for pods in the namespace.

Outside a cluster it uses the kubeconfig, as kubectl does.`,
		Example: `  levada stream watch --store postgres://localhost/shop --namespace shop --selector app=orders-worker`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			logger, err := log.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			config, found, err := kubernetesConfig(kubeconfig, kubeContext)
			if err != nil {
				return err
			}
			if namespace == "" {
				namespace = found
			}
			pods, err := podwatch.NewPods(config, namespace)
			if err != nil {
				return fmt.Errorf("kubernetes: %w", err)
			}
			d, err := store.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer d.closing(&err)
			h, closeNotifier, err := notifier.open(cmd.Context(), d, logger)
			if err != nil {
				return err
			}
			defer closeNotifier()
			registry := newRegistry(version)
			deaths := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "levada_stream_watch_deaths_total", Help: "Owners whose leases were ended, by the sign of their death and Kubernetes' reason."}, []string{"cause", "reason"})
			expired := prometheus.NewCounter(prometheus.CounterOpts{Name: "levada_stream_watch_leases_total", Help: "Leases that were ended."})
			registry.MustRegister(deaths, expired)
			watcher, err := podwatch.New(pods, d, podwatch.Options{Namespace: namespace, Selector: selector, SharedStore: shared, Notifier: h, Logger: logger,
				OnEnded: func(death podwatch.EndedOwner) {
					deaths.WithLabelValues(string(death.Cause), death.Reason).Inc()
					expired.Add(float64(death.Expired))
				}})
			if err != nil {
				return commandline.ExitError{Code: commandline.ExitUsage, Err: err}
			}
			web := probes{registry: registry, log: logger, ready: func(context.Context) error { return watcher.Health() }}
			address, stopWeb, err := web.serve(http)
			if err != nil {
				return err
			}
			defer stopWeb()
			logger.Info("watching pods", "namespace", namespace, "selector", selector, "metrics", address)
			return watcher.Run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	store.register(flags)
	notifier.register(flags)
	flags.StringVarP(&namespace, "namespace", "n", "", "namespace of the workers (default: this pod's, or the kubeconfig's)")
	flags.StringVarP(&selector, "selector", "l", "", "only pods with these labels, as in kubectl get -l")
	flags.BoolVar(&shared, "shared-store", false, "workers of other namespaces use the same store")
	flags.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file (default: in a pod its service account, else as kubectl)")
	flags.StringVar(&kubeContext, "context", "", "context of the kubeconfig")
	flags.StringVar(&http, "metrics-listen", ":8080", "address of metrics and probes; empty: none")
	log.Register(flags)
	return cmd
}

// namespaceFile is where a pod finds the name of its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// kubernetesConfig uses the pod's service account unless a kubeconfig is asked for, and returns the namespace that goes with it.
func kubernetesConfig(kubeconfig, kubeContext string) (*rest.Config, string, error) {
	if kubeconfig == "" && kubeContext == "" {
		config, err := rest.InClusterConfig()
		if err == nil {
			namespace, err := os.ReadFile(namespaceFile)
			if err != nil {
				return nil, "", fmt.Errorf("this pod's namespace: %w; name one with --namespace", err)
			}
			return config, strings.TrimSpace(string(namespace)), nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, "", fmt.Errorf("kubernetes: %w", err)
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: kubeContext})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", commandline.ExitError{Code: commandline.ExitUsage, Err: fmt.Errorf("kubernetes: neither in a pod nor a usable kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config): %w", err)}
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("kubernetes: %w", err)
	}
	return config, namespace, nil
}
