"""What API, console and command line read: typed values, ready to show: secrets masked, bodies left out."""

from carehook.insights.reading import Insights, build_list
from carehook.insights.views import (
    AttemptView,
    CircuitState,
    CircuitView,
    DeliveryDetailView,
    DeliveryView,
    EndpointCreatedView,
    EndpointView,
    EventDetailView,
    EventView,
    ListView,
    OrganizationView,
    TokenView,
    WaitKind,
    WaitView,
    view_organization,
    view_token,
)

__all__ = [
    "AttemptView",
    "CircuitState",
    "CircuitView",
    "DeliveryDetailView",
    "DeliveryView",
    "EndpointCreatedView",
    "EndpointView",
    "EventDetailView",
    "EventView",
    "Insights",
    "ListView",
    "OrganizationView",
    "TokenView",
    "WaitKind",
    "WaitView",
    "build_list",
    "view_organization",
    "view_token",
]
