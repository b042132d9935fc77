"""Products and prices: create, retrieve, list."""

from deploy.local.standins.stripe import catalog
from deploy.local.standins.stripe.form import flag, integer, merged_metadata, required
from deploy.local.standins.stripe.listing import filtered, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State


def create_product(state: State, asked: Asked) -> Object:
    identity = asked.params.get("id") or state.ids.new("prod")
    product = catalog.product(
        identity,
        required(asked.params, "name"),
        state.now(),
        description=asked.params.get("description"),
        metadata=merged_metadata({}, asked.params),
    )
    state.put("product", product)
    state.emit("product.created", product, request=asked.request_id)
    return product


def create_price(state: State, asked: Asked) -> Object:
    product = state.get("product", required(asked.params, "product"), "product")
    recurring = asked.params.get("recurring")
    price = catalog.price(
        state.ids.new("price"),
        product["id"],
        integer(asked.params, "unit_amount") or 0,
        state.now(),
        currency=required(asked.params, "currency"),
        lookup_key=asked.params.get("lookup_key"),
        metadata=merged_metadata({}, asked.params),
    )
    if recurring is None:
        price |= {"recurring": None, "type": "one_time"}
    else:
        price["recurring"] |= {
            "interval": required(recurring, "interval"),
            "interval_count": integer(recurring, "interval_count") or 1,
        }
    state.put("price", price)
    state.emit("price.created", price, request=asked.request_id)
    return price


def list_products(state: State, asked: Asked) -> Object:
    return page(_active(filtered(state.all("product"), asked), asked), asked)


def list_prices(state: State, asked: Asked) -> Object:
    keys = asked.params.get("lookup_keys")
    found = filtered(state.all("price"), asked, "product", "currency", "type")
    if keys:
        found = [price for price in found if price["lookup_key"] in keys]
    return page(_active(found, asked), asked)


def _active(items: list[Object], asked: Asked) -> list[Object]:
    if "active" not in asked.params:
        return items
    wanted = flag(asked.params, "active")
    return [item for item in items if item["active"] == wanted]
